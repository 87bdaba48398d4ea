"""What a model loses on a text under a memory, with gradients through all that is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from namm.cache import MemoryCache, UnsupportedModelError, checkpointed, layer_kinds
from namm.learning.tuning.masked import PLAIN_ONLY, held_by_block, masked_logits
from namm.learning.tuning.texts import NOT_COUNTED, Text
from namm.policies.base import Policy

AsItWas = Callable[[], AbstractContextManager[None]]


def text_loss(
    model: PreTrainedModel,
    text: Text,
    policy: Policy | None,
    piece: int,
    as_it_was: AsItWas | None = None,
    masked: str | None = None,
) -> Tensor:
    """Loss of the tokens of a text that are to be predicted, nats a token.

    Args:
        policy: what is kept meanwhile; None: everything, with one call and no cache.
        piece: tokens fed at once under a policy; what is kept is decided on after each, and where the context ends. In
            the backward pass each is computed again where it can be, see `namm.cache.checkpointed`.
        as_it_was: within it the model is a teacher, from whose predictions with a full cache the divergence is taken;
            None: the text itself teaches.
        masked: see `TuneConfig`.
    """
    if policy is not None and masked is not None:
        return _masked_loss(model, text, policy, piece, as_it_was, masked)
    if policy is None:
        ids = text.inputs[None].to(model.device)
        logits = model(ids, use_cache=False, logits_to_keep=text.scored).logits[0]
        return _cross_entropy(logits, text.wanted.to(model.device)) / text.counted
    cache, full = MemoryCache(model, policy), DynamicCache(config=model.config)
    cache.train()

    def lost(ids: Tensor, wanted: Tensor, teacher: Tensor | None) -> Tensor | None:
        logits = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=max(1, len(wanted))).logits[0]
        if not len(wanted):
            return None
        return _cross_entropy(logits, wanted) if teacher is None else _divergence(logits, wanted, teacher)

    losses = []
    for ids, wanted, settles in text.pieces(piece):
        ids, wanted = ids[None].to(model.device), wanted.to(model.device)
        teacher = None
        if as_it_was is not None:
            with teaching(model), as_it_was():
                teacher = model(ids, past_key_values=full, use_cache=True, logits_to_keep=max(1, len(wanted))).logits[0]
        again = checkpointed if forgets_everywhere(model) else _once
        losses.append(again(cache, lost, ids, wanted, teacher))
        if settles:
            cache.settle()
    return torch.stack([own for own in losses if own is not None]).sum() / text.counted


def _masked_loss(
    model: PreTrainedModel, text: Text, policy: Policy, piece: int, as_it_was: AsItWas | None, engine: str
) -> Tensor:
    """`text_loss` in one call, see `namm.learning.tuning.masked`."""
    if not forgets_everywhere(model):
        raise UnsupportedModelError(PLAIN_ONLY)
    with teaching(model):
        blocks, held = held_by_block(model, text, policy, piece, engine)
    logits, wanted = masked_logits(model, text, blocks, held), text.wanted.to(model.device)
    if as_it_was is None:
        return _cross_entropy(logits, wanted) / text.counted
    with teaching(model), as_it_was():
        inputs = text.inputs[None].to(model.device)
        teacher = model(inputs, use_cache=False, logits_to_keep=text.scored).logits[0]
    return _divergence(logits, wanted, teacher) / text.counted


def forgets_everywhere(model: PreTrainedModel) -> bool:
    """Whether all layers of a `MemoryCache` forget, without which its calls can't be checkpointed."""
    types, _ = layer_kinds(model.config, type(model).__name__)
    return set(types) == {"full_attention"}


def _once(cache: MemoryCache, function: Callable[..., Tensor | None], *arguments: Tensor | None) -> Tensor | None:
    return function(*arguments)


@contextmanager
def teaching(model: PreTrainedModel) -> Iterator[None]:
    """Within it no gradient is wanted, and a model in training uses its cache even if it is checkpointed."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def _cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), wanted, reduction="sum", ignore_index=NOT_COUNTED)


def _divergence(logits: Tensor, wanted: Tensor, teacher: Tensor) -> Tensor:
    counted = wanted != NOT_COUNTED
    found, aim = (own[counted].float().log_softmax(-1) for own in (logits, teacher))
    return F.kl_div(found, aim, reduction="sum", log_target=True)
