"""Attention over a cache that forgets: what transformers finds while a cache borrows its model's attention.

`MemoryLayer.update` hands the model keys and values that nothing can compute with (`HandedTensor`); a model passes
them on to its attention function, which is `memory_attention` then and gives them back to the layer. A model that
computes with cached keys on the way, or another attention function, fails loudly instead of seeing half the tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from namm.cache.arithmetic import AttentionForm
from namm.cache.loan import IMPLEMENTATION, Loan, own_implementation
from namm.cache.padding import Padding
from namm.cache.serves import ATTENTION_DROPOUT, NEEDS_USE_CACHE, UnsupportedModelError
from namm.cache.tape import recomputing


class _Layer(Protocol):
    loan: Loan
    padding: Padding

    def attend(self, query: Tensor, mask: Tensor | None, form: AttentionForm) -> Tensor: ...


class AskedLength(int):
    """The length of a mask, which knows the layer that it was asked of.

    Attributes:
        layer: for which the mask is made.
    """

    layer: _Layer

    @classmethod
    def of(cls, length: int, layer: _Layer) -> AskedLength:
        asked = cls(length)
        asked.layer = layer
        return asked


class HandedTensor(Tensor):
    """The new tokens' keys or values on their way from the cache to the attention function: metadata only.

    Attributes:
        layer: the cache layer that waits for them.
    """

    layer: _Layer

    READABLE = frozenset(
        {"shape", "dtype", "device", "ndim", "layout", "is_cuda", "is_cpu", "requires_grad", "size", "dim", "numel"}
        | {"layer", "data_ptr", "element_size", "is_floating_point", "is_contiguous", "stride", "__len__", "nelement"}
    )

    @classmethod
    def hand(cls, tensor: Tensor, layer: _Layer) -> HandedTensor:
        handed = tensor.as_subclass(cls)
        handed.layer = layer
        return handed

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]  # torch's is untyped
        return f"HandedTensor(shape={tuple(self.shape)})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "__get__":  # an attribute: its descriptor carries the name
            name = getattr(getattr(func, "__self__", None), "__name__", "")
        if name not in cls.READABLE:
            raise UnsupportedModelError(
                f"the model computed {name!r} on keys or values that a MemoryCache handed to its attention. Either the "
                "cache was made for another model (or loaded from a file: attach(model) it first), or the model is "
                "compiled, or it transforms cached keys, as multi-head latent attention does, and can't be served"
            )
        return super().__torch_function__(func, types, args, kwargs or {})


def memory_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The attention function for transformers: layers of a `MemoryCache` attend to what they keep.

    Args:
        query: ``[batch, query heads, queries, width]``. key, value: ``[batch, KV heads, tokens, width]``.
        attention_mask: None or ``[batch, 1, queries, tokens]``.

    Returns:
        ``[batch, queries, query heads, value width]`` and None.

    Raises:
        UnsupportedModelError: for arguments that change attention in a way the cache doesn't know.
    """
    if not isinstance(key, HandedTensor):  # of another call, in another thread
        own = own_attention(module)
        options = {name: given for name, given in {"softcap": softcap, "s_aux": s_aux}.items() if given is not None}
        found: tuple[Tensor, Tensor | None] = own(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **options, **kwargs
        )
        return found
    layer = key.layer
    layer.loan.give_back()
    _refuse_unknown(module, value, layer, dropout, kwargs)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return layer.attend(query, attention_mask, AttentionForm(scaling, softcap, s_aux)), None


def own_attention(module: nn.Module) -> Callable[..., Any]:
    """The function through which a module attends when no cache borrows it."""
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    interface: Any = ALL_ATTENTION_FUNCTIONS
    config: Any = module.config
    found: Callable[..., Any] = interface.get_interface(own_implementation(config), eager)
    return found


def _refuse_unknown(module: nn.Module, value: Tensor, layer: _Layer, dropout: float, kwargs: dict[str, Any]) -> None:
    if not isinstance(value, HandedTensor) or value.layer is not layer:
        raise UnsupportedModelError(f"{type(module).__name__} attends with values that are not the cache's own")
    checkpointed = layer.loan.keeps_cache or recomputing()  # transformers says use_cache=False then
    if kwargs.get("use_cache") is False and not checkpointed:
        raise UnsupportedModelError(NEEDS_USE_CACHE)
    if dropout and module.training:
        raise UnsupportedModelError(ATTENTION_DROPOUT)
    for argument in ("sliding_window", "position_bias", "alibi"):
        if kwargs.get(argument) is not None:
            raise UnsupportedModelError(
                f"{type(module).__name__} passes {argument!r} to a layer that its configuration calls full attention; "
                "a MemoryCache can't serve it"
            )
    causal = kwargs.get("is_causal")
    if causal is False or (causal is None and getattr(module, "is_causal", True) is False):
        raise UnsupportedModelError(
            f"{type(module).__name__} is not causal; a MemoryCache serves causal attention only"
        )


def memory_mask(
    *args: Any,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    config: Any = None,
    **kwargs: Any,
) -> Tensor | None:
    """The mask function for transformers: what a 2-D mask says goes to the cache, and no large mask is made.

    Only where attention is not plainly causal (two-way blocks of image tokens, say) is the mask made as for sdpa; the
    layer judges it by its values.
    """
    arguments: dict[str, Any] = {"q_length": q_length, "kv_length": int(kv_length), "q_offset": q_offset}
    arguments |= {"mask_function": mask_function, "attention_mask": attention_mask, **kwargs}
    if not isinstance(kv_length, AskedLength):  # of another call, in another thread
        found: Tensor | None = ALL_MASK_ATTENTION_FUNCTIONS[own_implementation(config)](
            *args, config=config, **arguments
        )
        return found
    layer = kv_length.layer
    layer.loan.give_back()
    if not recomputing():
        layer.padding.told(attention_mask, int(q_offset), q_length)
    if mask_function is causal_mask_function:
        return None
    judged: Tensor | None = sdpa_mask(*args, **arguments)
    return judged


AttentionInterface.register(IMPLEMENTATION, memory_attention)
AttentionMaskInterface.register(IMPLEMENTATION, memory_mask)
