import torch

from namm.models.precision import fast_dtype


def capabilities(**found):
    return lambda: {"architecture": "x86_64"} | found


def test_bfloat16_where_it_is_computed_and_float32_where_it_is_emulated(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", capabilities(avx512_bf16=True), raising=False)
    assert fast_dtype() == fast_dtype("cpu") == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "get_capabilities", capabilities(avx2=True), raising=False)
    assert fast_dtype() == torch.float32
    assert fast_dtype("cuda") == torch.bfloat16
