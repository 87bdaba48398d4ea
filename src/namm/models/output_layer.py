"""The output layer of a model on a CPU, for the last tokens of a text."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel


def fold_last_tokens(model: PreTrainedModel) -> None:
    """Have the output layer take the last tokens of a text as fast as it takes a whole one.

    With ``logits_to_keep`` transformers hands it a slice ``[1, n, width]`` whose first stride is that of all tokens. By
    that torch (2.13, `should_fold`) takes it for a batch of matrices and multiplies it with a copy of the weights,
    which on a CPU takes seconds for a large vocabulary in bfloat16; a view with a stride of its own is folded.
    """
    layer = model.get_output_embeddings()
    if isinstance(layer, nn.Linear):
        layer.register_forward_pre_hook(_folded)


def _folded(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    hidden: Tensor = given[0]
    return (hidden.reshape(-1, hidden.shape[-1]).view(hidden.shape), *given[1:])
