from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from namm import NAMM, MemoryCache, NAMMConfig
from namm.support.fingerprints import fingerprint, model_fingerprint


@pytest.mark.fault("A11", siblings="eight values of each parameter stood for all of it")
def test_one_bit_of_one_weight_makes_another_model(tiny) -> None:
    other = copy.deepcopy(tiny)
    assert model_fingerprint(other) == model_fingerprint(tiny)
    weight = other.model.layers[1].mlp.down_proj.weight
    with torch.no_grad():
        weight[7, 11] = torch.nextafter(weight[7, 11], torch.tensor(9.0))
    assert model_fingerprint(other) != model_fingerprint(tiny)


def test_dtype_and_positions_make_another_model(tiny) -> None:
    half = copy.deepcopy(tiny).half().float()
    stretched = copy.deepcopy(tiny)
    stretched.config.rope_parameters = {"rope_theta": 5e5, "rope_type": "default"}
    assert len({model_fingerprint(model) for model in (tiny, half, copy.deepcopy(half).half(), stretched)}) == 4


def test_use_makes_no_other_model(tiny, ids) -> None:
    model = copy.deepcopy(tiny)
    before = model_fingerprint(model)
    with torch.no_grad():
        model(ids, past_key_values=MemoryCache(model, NAMM()))
    model.config.use_cache = False
    assert model_fingerprint(model) == before


def test_weights_that_are_kept_elsewhere_count(tiny) -> None:
    from accelerate import cpu_offload

    offloaded = cpu_offload(copy.deepcopy(tiny), execution_device=torch.device("cpu"))
    assert offloaded.model.layers[0].mlp.up_proj.weight.is_meta
    other = copy.deepcopy(tiny)
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    other = cpu_offload(other, execution_device=torch.device("cpu"))
    assert model_fingerprint(offloaded) == model_fingerprint(tiny) != model_fingerprint(other)


def test_parts_are_kept_apart() -> None:
    one = torch.ones(2)
    assert fingerprint(one, one) != fingerprint(torch.ones(4)) != fingerprint(torch.ones(4).bfloat16())
    assert fingerprint("ab", "c") != fingerprint("a", "bc")
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


@pytest.mark.fault("A11", siblings="evolution and evaluation took a memory's parameters alone for it")
def test_a_memory_is_its_parameters_normalisation_and_configuration() -> None:
    memory = NAMM(NAMMConfig(normalised=True))
    others = [
        replace(memory, mean=memory.mean + 1),
        replace(memory, flat=memory.flat * 2),
        replace(memory, config=replace(memory.config, heads=2)),
    ]
    assert len({each.fingerprint() for each in (memory, *others)}) == 4
