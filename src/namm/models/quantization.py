"""What a model's weights take as they are stored, told from its quantisation's configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

# Bits of a number with its share of the scales, where the method has no choice.
FIXED = {
    "mxfp4": 4 + 8 / 32,  # one exponent of 8 bits for 32 numbers
    "mxfp8": 8 + 8 / 32,
    "nvfp4": 4 + 8 / 16,
    "bitnet": 2.0,
    "eetq": 8.0,
    "fbgemm_fp8": 8.0,
}


@dataclass(frozen=True)
class StoredWeights:
    """What the weights take.

    Attributes:
        parameters: numbers, one that two modules share counted once.
        size: bytes.
        note: how quantised weights were counted; empty where none are.
    """

    parameters: int
    size: int
    note: str


def stored_weights(model: PreTrainedModel, config: Mapping[str, Any] | None, element: int) -> StoredWeights:
    """What the weights take as they are stored.

    Quantised are the weights of linear layers and of experts inside the layers, but not what the configuration
    leaves out; embeddings, the head, routers, norms and biases stay as they are. Scales and zero points are counted.

    Args:
        model: may be on the meta device, and is as it would be without quantisation.
        config: ``quantization_config`` of the model's configuration, as a mapping; None: nothing is quantised.
        element: bytes of a number that is not quantised.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    bits = None if config is None else bits_of(config)
    if config is None or bits is None:
        method = (config or {}).get("quant_method")
        note = f"quantised by {method}, whose size is not known here: counted as {8 * element} bit" if config else ""
        return StoredWeights(total, total * element, note)
    quantised = sum(parameter.numel() for parameter in _quantised(model, config))
    size = (total - quantised) * element + round(quantised * bits / 8)
    method = config["quant_method"]
    note = f"{quantised / 1e9:.2f} billion of them by {method} at {bits:.4g} bit, scales included"
    return StoredWeights(total, size, note)


def bits_of(config: Mapping[str, Any]) -> float | None:
    """Bits that a quantised number takes with its share of scales and zero points; None for an unknown method."""
    method = config.get("quant_method")
    if method is None and (config.get("load_in_4bit") or config.get("load_in_8bit")):
        method = "bitsandbytes"
    if method in FIXED:
        return FIXED[method]
    match method:
        case "bitsandbytes" if config.get("load_in_4bit"):
            # float32 scales of blocks of 64; doubly quantised: of 8 bits, with a float32 for 256 of them
            return 4 + (8 / 64 + 32 / (64 * 256) if config.get("bnb_4bit_use_double_quant") else 32 / 64)
        case "bitsandbytes":
            return 8.0
        case "fp8":
            rows, columns = config.get("weight_block_size") or (128, 128)
            return 8 + 32 / (rows * columns)
        case "gptq" | "awq" | "auto-round":
            return _grouped(config.get("bits", 4), config.get("group_size", 128), 16, zeros=True)
        case "compressed-tensors":
            group: Mapping[str, Any] = next(iter((config.get("config_groups") or {}).values()), {})
            weights = group.get("weights") or {}
            if not weights.get("num_bits"):
                return None
            small = weights["num_bits"] == 4 and weights.get("type") == "float"  # NVFP4 and MXFP4: scales of 8 bits
            zeros = not weights.get("symmetric", True)
            return _grouped(weights["num_bits"], weights.get("group_size") or -1, 8 if small else 16, zeros=zeros)
    return None


def _grouped(bits: float, group: int, scale: int, *, zeros: bool) -> float:
    """With a scale (and a zero point) for each group; -1: a group is a row, whose share is next to nothing."""
    return bits if group <= 0 else bits + (scale + (bits if zeros else 0)) / group


def _quantised(model: PreTrainedModel, config: Mapping[str, Any]) -> Iterator[Tensor]:
    left_out = _left_out(config)
    only_experts = config.get("quant_method") == "mxfp4"  # transformers has no other layer for it
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if module is head or any(re.search(pattern, name) for pattern in left_out):
            continue
        if type(module).__name__.endswith("Experts"):
            yield from (parameter for parameter in module.parameters(recurse=False) if parameter.ndim == 3)
        elif isinstance(module, nn.Linear) and not only_experts:
            yield module.weight


def _left_out(config: Mapping[str, Any]) -> list[str]:
    """Patterns of the names of modules that are not quantised."""
    keys = ("modules_to_not_convert", "llm_int8_skip_modules", "ignore")
    names: Sequence[str] = [name for key in keys for name in config.get(key) or ()]
    return [
        name.removeprefix("re:") if name.startswith("re:") else rf"(^|\.){re.escape(name)}(\.|$)".replace(r"\*", ".*")
        for name in names
    ]
