"""What a model that is spread over devices or processes is asked to do."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

import namm
from namm.policies import H2O, Full, NAMMPolicy, Policy


def policies() -> list[Policy]:
    memory = namm.NAMM(namm.NAMMConfig(update_interval=64))
    return [Full(), NAMMPolicy(memory, offset=-0.02), H2O(0.3, 64)]


@torch.no_grad()
def run_policies(model: PreTrainedModel) -> dict[str, tuple[Tensor, list[list[Tensor]]]]:
    """For each policy the logits of a prompt in two pieces, and the positions that each layer's heads hold."""
    ids = torch.randint(3, 200, (1, 300), generator=torch.Generator().manual_seed(1))
    found = {}
    for policy in policies():
        cache = namm.MemoryCache(model, policy)
        logits = [model(piece, past_key_values=cache).logits for piece in ids.split([290, 10], dim=1)]
        cache.check()
        found[policy.name] = torch.cat(logits, dim=1), [rows[0] for rows in cache.positions()]
    return found
