"""What a cache will cost, told from a model's configuration alone."""

from __future__ import annotations

import json
from bisect import bisect_right
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from namm.cache import layer_kinds
from namm.memory import NAMMConfig
from namm.models import ModelNotFoundError
from namm.support.tensors import SEGMENT, round_up

LONGEST = 2**30  # tokens; no context is planned beyond


@dataclass(frozen=True)
class Plan:
    """Sizes in bytes for one model, dtype, batch and memory; the methods take a context and a fraction kept.

    Attributes:
        parameters: of the model. weights: their bytes.
        layers: layers that forget, each with `heads` KV heads and `query_heads` heads, all of `width`.
        windows: tokens that each sliding-window layer holds at most. other_layers: of other kinds, not counted.
        element: bytes of a cached number. batch: rows.
        memory: configuration of the memory.
    """

    parameters: int
    weights: int
    layers: int
    heads: int
    query_heads: int
    width: int
    windows: tuple[int, ...]
    other_layers: int
    element: int
    batch: int
    memory: NAMMConfig

    @property
    def token_bytes(self) -> int:
        """Keys and values of one token of one KV head."""
        return 2 * self.width * self.element

    def sliding(self, context: int) -> int:
        """Keys and values of the layers with sliding windows, which no policy touches."""
        return self.batch * sum(min(context, window) for window in self.windows) * self.heads * self.token_bytes

    def full(self, context: int) -> int:
        """A full cache."""
        return self.batch * self.layers * self.heads * context * self.token_bytes + self.sliding(context)

    def kept(self, context: int, fraction: float) -> int:
        """A `MemoryCache` whose memory keeps this fraction in every head, with all its state, while decoding.

        At most so much, just before an update: a block not yet decided on lies beside what is kept, and its queries
        are held, with free slots behind them.
        """
        config, interval = self.memory, self.memory.update_interval
        state = len(config.ema) * config.spectrogram.bins * getattr(torch, config.state_dtype).itemsize
        position = torch.int32.itemsize
        undecided = min(context, interval)
        tokens = round_up(min(context, round(fraction * context) + undecided))
        columns = self.heads * tokens * (self.token_bytes + state + position)
        carried = config.spectrogram.carry * self.query_heads * (self.width * self.element + torch.float32.itemsize)
        queries = (undecided + min(SEGMENT, undecided // 4)) * self.query_heads * self.width * self.element + carried
        return self.batch * self.layers * (columns + queries) + self.sliding(context)

    def longest(self, room: int, fraction: float | None) -> int:
        """Tokens of the longest context whose cache fits so many bytes; fraction None: a full cache."""

        def cost(context: int) -> int:
            return self.full(context) if fraction is None else self.kept(context, fraction)

        return max(0, bisect_right(range(LONGEST), room, key=cost) - 1)


def plan(model: str, memory: NAMMConfig, *, dtype: torch.dtype | None = None, batch: int = 1) -> Plan:
    """The plan of a model: of a ``config.json`` or its folder, a packaged configuration, or a hub id.

    Args:
        dtype: of weights and cache; None: the configuration's own, else bfloat16.

    Raises:
        ModelNotFoundError: if there is no such configuration.
        ValueError: for one that transformers does not know, or a model without layers that could forget.
    """
    config = read_config(model)
    text = config.get_text_config(decoder=True)
    dtype = dtype or getattr(config, "dtype", None) or torch.bfloat16
    types, _ = layer_kinds(config, model)
    layers = types.count("full_attention")
    query_heads = text.num_attention_heads
    sliding = [kind for kind in types if kind in ("sliding_attention", "chunked_attention")]
    window = getattr(text, "sliding_window", None) or getattr(text, "attention_chunk_size", None) or 0
    parameters = count_parameters(config)
    return Plan(
        parameters,
        parameters * dtype.itemsize,
        layers,
        getattr(text, "num_key_value_heads", None) or query_heads,
        query_heads,
        getattr(text, "head_dim", None) or text.hidden_size // query_heads,
        (window,) * len(sliding),
        len(types) - layers - len(sliding),
        dtype.itemsize,
        batch,
        memory,
    )


def packaged_configs() -> list[str]:
    """Names of the configurations in the package."""
    folder = resources.files("namm").joinpath("data", "configs")
    return sorted(file.name.removesuffix(".json") for file in folder.iterdir() if file.name.endswith(".json"))


def read_config(model: str) -> PretrainedConfig:
    """See `plan`."""
    path = Path(model).expanduser()
    if path.is_file():
        text, source = path.read_text(encoding="utf-8-sig"), str(path)
    elif model in packaged_configs():
        text = resources.files("namm").joinpath("data", "configs", f"{model}.json").read_text(encoding="utf-8")
        source = model
    elif path.suffix == ".json":
        raise ModelNotFoundError(f"there is no file {model!r}")
    else:
        try:
            return AutoConfig.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise ModelNotFoundError(
                f"no configuration of {model!r}: give a config.json, a model's folder, a hub id, or one of "
                f"{', '.join(packaged_configs())} ({str(error).splitlines()[0]})"
            ) from error
    try:
        values: dict[str, Any] = json.loads(text)
        return AutoConfig.for_model(values.pop("model_type"), **values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{source} is no configuration of a model that transformers knows: {error}") from error


def count_parameters(config: PretrainedConfig) -> int:
    """Parameters of the model, which is built without any; those that embedding and head share count once."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())
