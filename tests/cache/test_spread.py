"""A model over several devices or processes gives what it gives on one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from spread import run_policies
from transformers import AutoModelForCausalLM, PreTrainedModel

import namm


@pytest.fixture
def folder(tiny: PreTrainedModel, tmp_path: Path) -> Path:
    tiny.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
def test_two_tensor_parallel_processes(tiny: PreTrainedModel, folder: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(__file__).with_name("tensor_parallel.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [*launcher, program, folder, tmp_path], env=environment, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, (expected, held) in run_policies(tiny).items():
        for logits, _ in (part[name] for part in parts):
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
        for layer, heads in enumerate(held):  # each process has its half of the heads
            for head, positions in enumerate(heads):
                (own,) = parts[head][name][1][layer]
                assert torch.equal(own, positions), f"{name}, layer {layer}, head {head}"


def test_a_model_split_by_a_device_map(tiny: PreTrainedModel, folder: Path, tmp_path: Path) -> None:
    """Without a second device its layers lie in memory and on disk, and are moved by the same hooks."""
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    places |= {"model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "disk"}
    model = AutoModelForCausalLM.from_pretrained(
        folder, device_map=places, offload_folder=tmp_path / "offload", dtype=torch.float32
    ).eval()
    assert next(model.model.layers[1].parameters()).device.type == "meta", "it is not in memory"
    found = run_policies(model)
    for name, (expected, held) in run_policies(tiny).items():
        logits, positions = found[name]
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
        assert all(
            torch.equal(a, b)
            for own, other in zip(positions, held, strict=True)
            for a, b in zip(own, other, strict=True)
        )


def test_load_model_takes_a_device_map(reader_folder: Path) -> None:
    model, _ = namm.load_model(str(reader_folder), dtype="float32", device_map="auto")
    assert model.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert run_policies(model)["h2o"][0].isfinite().all()
