from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from namm import load_model


@pytest.mark.parametrize("rows", [1, 2])
def test_the_last_tokens_come_to_the_output_layer_as_a_whole(reader_folder: Path, rows: int) -> None:
    """By the strides of a slice torch would multiply batch by batch, which is slow on a CPU."""
    model, _ = load_model(reader_folder, dtype="float32", device="cpu")
    plain, strides = copy.deepcopy(model), []
    plain.lm_head._forward_pre_hooks.clear()
    model.lm_head.register_forward_pre_hook(lambda _, given: strides.append(given[0].stride()))
    ids = torch.arange(97, 97 + 20 * rows).view(rows, 20)
    with torch.no_grad():
        found, expected = (each(ids, logits_to_keep=3).logits for each in (model, plain))
    width = model.config.hidden_size
    assert strides == [(3 * width, width, 1)]
    torch.testing.assert_close(found, expected)


def test_gradients_pass_the_output_layer(reader_folder: Path) -> None:
    model, _ = load_model(reader_folder, dtype="float32", device="cpu")
    model(torch.arange(97, 117)[None], logits_to_keep=3).logits.sum().backward()
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0
