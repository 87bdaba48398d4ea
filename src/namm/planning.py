"""What a cache will cost, told from a model's configuration alone."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from namm.cache import UnsupportedModelError, layer_kinds
from namm.cache.loan import loan_of
from namm.memory import NAMMConfig
from namm.models import ModelNotFoundError
from namm.models.gguf import first_line
from namm.models.quantization import stored_weights
from namm.support.tensors import SEGMENT, round_up

LONGEST = 2**30  # tokens; no context is planned beyond


@dataclass(frozen=True)
class Plan:
    """Sizes in bytes for one model, dtype, batch and memory; the methods take a context and a fraction kept.

    Attributes:
        parameters: of the model.
        weights: their bytes as they are stored.
        quantised: how quantised weights were counted; empty where none are.
        layers: layers that forget, each with `heads` KV heads and `query_heads` heads.
        width: of a head's key.
        value_width: of its value.
        windows: tokens that each sliding-window layer holds at most.
        window_numbers: how many numbers keys and values of one token are in each of these.
        other_layers: of other kinds, not counted.
        element: bytes of a cached number.
        batch: rows.
        memory: configuration of the memory.
    """

    parameters: int
    weights: int
    quantised: str
    layers: int
    heads: int
    query_heads: int
    width: int
    value_width: int
    windows: tuple[int, ...]
    window_numbers: tuple[int, ...]
    other_layers: int
    element: int
    batch: int
    memory: NAMMConfig

    @property
    def token_bytes(self) -> int:
        """Keys and values of one token of one KV head."""
        return (self.width + self.value_width) * self.element

    def sliding(self, context: int) -> int:
        """Keys and values of the layers with sliding windows, which no policy touches."""
        layers = zip(self.windows, self.window_numbers, strict=True)
        return self.batch * self.element * sum(min(context, window) * numbers for window, numbers in layers)

    def full(self, context: int) -> int:
        """A full cache."""
        return self.batch * self.layers * self.heads * context * self.token_bytes + self.sliding(context)

    def kept(self, context: int, fraction: float) -> int:
        """A `MemoryCache` whose memory keeps this fraction in every head, with all its state, while decoding.

        At most so much, just before an update: a block not yet decided on lies beside what is kept, and its queries
        are held, with free slots behind them.
        """
        config, interval = self.memory, self.memory.update_interval
        state = sum(math.prod(column.shape) * column.dtype.itemsize for column in config.state.values())
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
        UnsupportedModelError: for a model that a `MemoryCache` can't serve.
        ValueError: for one that transformers does not know.
    """
    config = read_config(model)
    name = (config.architectures or [type(config).__name__])[0]
    kinds, options = layer_kinds(config, name)
    empty = without_weights(config)
    loan_of(empty)
    text: Any = config.get_text_config(decoder=True)
    dtype = dtype or getattr(text, "dtype", None) or getattr(config, "dtype", None) or torch.bfloat16
    shapes = [layer_shape(empty, index, layer) for index, layer in enumerate(text.per_layer_config)]
    forgetting = {shape for shape, kind in zip(shapes, kinds, strict=True) if kind == "full_attention"}
    if len(forgetting) > 1:
        raise ValueError(f"{name} has full-attention layers of different shapes, which is not planned for")
    ((heads, width, value_width),) = forgetting
    sliding = [index for index, kind in enumerate(kinds) if kind in ("sliding_attention", "chunked_attention")]
    weights = stored_weights(empty, quantization_of(config), dtype.itemsize)
    return Plan(
        weights.parameters,
        weights.size,
        weights.note,
        kinds.count("full_attention"),
        heads,
        max(layer.num_attention_heads for layer in text.per_layer_config),
        width,
        value_width,
        tuple(options[index]["sliding_window"] for index in sliding),
        tuple(shapes[index][0] * sum(shapes[index][1:]) for index in sliding),
        len(kinds) - kinds.count("full_attention") - len(sliding),
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
        text, source = path.read_bytes(), str(path)
    elif model in packaged_configs():
        text = resources.files("namm").joinpath("data", "configs", f"{model}.json").read_bytes()
        source = model
    elif path.suffix == ".json":
        raise ModelNotFoundError(f"there is no file {model!r}")
    else:
        try:
            return AutoConfig.from_pretrained(model)
        except Exception as error:  # a damaged configuration fails in any way
            raise ModelNotFoundError(
                f"no configuration of {model!r}: give a config.json, a model's folder, a hub id, or one of "
                f"{', '.join(packaged_configs())} ({first_line(error)})"
            ) from error
    try:
        values: dict[str, Any] = json.loads(text)
        return AutoConfig.for_model(values.pop("model_type"), **values)
    except Exception as error:  # likewise
        reason = first_line(error)
        raise ValueError(f"{source} is no configuration of a model that transformers knows: {reason}") from error


def without_weights(config: PretrainedConfig) -> PreTrainedModel:
    """The model on the meta device.

    Raises:
        UnsupportedModelError: if transformers makes no causal language model of the configuration.
    """
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # each of its hundreds of families has its own way to fail
        reason = first_line(error).partition(" for this kind of AutoModel")[0]
        raise UnsupportedModelError(
            f"transformers makes no causal language model of this {type(config).__name__}: {reason}"
        ) from error
    return model


def layer_shape(model: PreTrainedModel, index: int, config: PretrainedConfig) -> tuple[int, int, int]:
    """KV heads of a layer, and the widths of a key and of a value.

    The projections tell it exactly; where a model has none by these names its configuration does.
    """
    values: Any = config
    heads = getattr(values, "num_key_value_heads", None) or values.num_attention_heads
    width = getattr(values, "head_dim", None) or values.hidden_size // values.num_attention_heads
    for module in model.modules():
        keys, own = getattr(module, "k_proj", None), getattr(module, "v_proj", None)
        if getattr(module, "layer_idx", None) == index and isinstance(keys, nn.Linear):
            value = own.out_features if isinstance(own, nn.Linear) else keys.out_features  # without: keys are values
            width = getattr(module, "head_dim", None) or width
            heads = keys.out_features // width
            return heads, width, value // heads
    return heads, width, width


def quantization_of(config: PretrainedConfig) -> dict[str, Any] | None:
    """The ``quantization_config`` of a configuration, or of its language model; None where there is none."""
    text = config.get_text_config(decoder=True)
    found: Any = getattr(config, "quantization_config", None) or getattr(text, "quantization_config", None)
    return found.to_dict() if hasattr(found, "to_dict") else found
