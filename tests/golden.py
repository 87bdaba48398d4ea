"""Replays the reference's golden vectors through the library's own policy, teacher-forced update by update."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from namm import NAMM, NAMMConfig
from namm.memory.network import token_outputs, unflatten
from namm.memory.spectrogram import stft_magnitudes
from namm.policies import Head, NAMMPolicy

SMALL = Path(__file__).parent / "data" / "golden_small.npz"


def load() -> dict[str, np.ndarray]:
    """The file that NAMM_GOLDEN names, else the two cases that the repository carries."""
    with np.load(os.environ.get("NAMM_GOLDEN") or SMALL) as file:
        return {name: file[name] for name in file.files}


def cases(golden: dict[str, np.ndarray]) -> list[str]:
    return sorted({name.split("/")[0] for name in golden if "/" in name})


@dataclass
class Update:
    """One update of one KV head: what goes in, and what the reference made of it."""

    attention: Tensor
    expected: dict[str, Tensor]


def updates(golden: dict[str, np.ndarray], case: str) -> list[list[Update]]:
    """For each KV head of a case its updates in order."""
    meta = json.loads(str(golden[f"{case}/meta"]))
    sizes = golden[f"{case}/updates"].tolist()
    heads: list[list[Update]] = [[] for _ in range(meta["n_kv"])]
    for u in range(len(sizes)):
        for h in range(meta["n_kv"]):
            if meta["mode"] == "ragged":
                prefix = f"{case}/u{u}/h{h}/"
                found = {k.removeprefix(prefix): torch.tensor(v) for k, v in golden.items() if k.startswith(prefix)}
                attention = found["attn"]
                found["keep"] = torch.zeros(len(found["pos"]), dtype=torch.bool)
                found["keep"][found["keep_idx"].long()] = True
                found["next"] = found["keep_pos"]
            else:
                prefix = f"{case}/u{u}/"
                found = {k.removeprefix(prefix): torch.tensor(v) for k, v in golden.items() if k.startswith(prefix)}
                groups = found["attn_q"].shape[0] // meta["n_kv"]
                attention = found["attn_q"][h * groups : (h + 1) * groups].mean(0)
                found = {
                    k: v[:, h] if k == "stft_mag" and v.shape[0] != meta["n_kv"] else v[h] for k, v in found.items()
                }
                found["keep"] = found["keep_mask"]
                found["next"] = found["ref_phys_pos"]
            heads[h].append(Update(attention, found))
    return heads


def golden_policy(golden: dict[str, np.ndarray], case: str) -> NAMMPolicy:
    normalised = json.loads(str(golden[f"{case}/meta"]))["normalised"]
    memory = NAMM(
        NAMMConfig(normalised=normalised),
        torch.tensor(golden["params"]),
        torch.tensor(golden["norm_mean"]),
        torch.tensor(golden["norm_var"]),
    )
    return NAMMPolicy(memory)


def check_case(golden: dict[str, np.ndarray], case: str) -> int:
    """Raises AssertionError at the first feature, score or decision that differs; returns the decisions compared."""
    policy = golden_policy(golden, case)
    config = policy.memory.config
    decisions = 0
    for head_updates in updates(golden, case):
        carried, kept_state, kept_at = None, None, None
        for update in head_updates:
            expected, new = update.expected, update.attention.shape[0]
            tokens = len(expected["pos"])
            state = torch.zeros(tokens, 1, config.spectrogram.bins)
            tail = torch.zeros(config.spectrogram.carry, tokens)
            if kept_at is not None and carried is not None and kept_state is not None:
                assert torch.equal(expected["pos"][: len(kept_at)], kept_at)
                state[: len(kept_at)], tail[:, : len(kept_at)] = kept_state, carried
            signal = torch.cat([tail, update.attention])
            if "stft_mag" in expected:
                magnitudes = stft_magnitudes(signal, config.spectrogram).transpose(1, 2)
                torch.testing.assert_close(magnitudes, expected["stft_mag"], atol=1e-5, rtol=0)
            positions = expected["pos"].int()
            columns = {"positions": positions, "spectrogram": state}
            head = Head(0, 0, 0, columns, int(positions[-1]) + 1, new, signal)
            policy.observe(head)
            features = policy.features(head)
            torch.testing.assert_close(state[:, 0], expected["spec_ema"], atol=1e-5, rtol=0)
            torch.testing.assert_close(features[:, :8], expected["recency_emb"], atol=1e-5, rtol=0)
            seen = expected.get("spec_norm", expected["spec_ema"])
            torch.testing.assert_close(features[:, 8:], seen, atol=1e-4 if "spec_norm" in expected else 1e-5, rtol=0)
            weights = unflatten(policy.memory.flat, config.features, config.hidden)
            hidden = token_outputs(features, weights)
            torch.testing.assert_close(hidden, expected["bam_out"], atol=1e-3, rtol=1e-4)
            torch.testing.assert_close(policy.memory.scores(features), expected["scores"], atol=1e-3, rtol=1e-4)
            keep = policy.select([head])[0]
            keep[-1] = True  # as the cache does
            assert torch.equal(keep, expected["keep"]), f"{int((keep != expected['keep']).sum())} decisions differ"
            decisions += tokens
            kept_at = expected["next"]
            stays = torch.isin(expected["pos"], kept_at)
            kept_state, carried = state[stays], signal[-config.spectrogram.carry :, stays]
    return decisions
