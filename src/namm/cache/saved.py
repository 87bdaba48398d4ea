"""What a cache holds, in a file: a text that was read once can be asked in any process.

One file of safetensors, ``cache.safetensors`` in a folder: for every row of every layer the columns of its heads'
tokens one behind the other, without free slots; queries that the policy has yet to see; what layers of other kinds
hold; and the memory itself. Its metadata say what the tensors are, and of which model, tokenizer and policy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from namm.cache.arithmetic import AttentionForm
from namm.cache.engine import RowState
from namm.cache.layer import MemoryLayer
from namm.cache.packed import Packed
from namm.memory import NAMM, NAMMConfig
from namm.memory.files import CONFIG_KEY, MemoryFileError, read_tensors
from namm.policies import NAMMPolicy, Policy
from namm.policies.described import Described
from namm.support.files import strict_json, write_atomically
from namm.support.fingerprints import fingerprint, model_fingerprint, tokenizer_fingerprint
from namm.support.version import VERSION

if TYPE_CHECKING:
    from namm.cache.cache import MemoryCache

FILE, FORMAT = "cache.safetensors", 1
ROUNDED = torch.bfloat16  # models that are equal so rounded are one model
TOLD = ("seen", "updated", "compared", "hid")
LIKE_MODEL = {
    "keys",
    "values",
    "pending",
    "carried",
    "sinks",
    "sink keys",
    "sink values",
}  # of the dtype that the model has


@dataclass(frozen=True)
class Saved:
    """What a folder holds.

    Attributes:
        header: the metadata, see `save`.
        tensors: by name.
    """

    folder: Path
    header: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @classmethod
    def read(cls, folder: str | Path) -> Saved:
        """Raises MemoryFileError if it is missing, damaged, or of a format that this version does not know."""
        path = Path(folder).expanduser() / FILE
        tensors, told = read_tensors(path)
        try:
            header = json.loads(told or "")
            known = header["format"] == FORMAT
        except (ValueError, TypeError, KeyError, RecursionError):
            raise MemoryFileError(f"{path} was not written by MemoryCache.save") from None
        if not known:
            raise MemoryFileError(
                f"{path} has the format {header['format']}, and namm {VERSION} reads {FORMAT}: read the text anew"
            )
        if header["contents"] != _contents(tensors):
            raise MemoryFileError(f"{path} is damaged: copy it again, or read the text anew")
        return cls(path.parent, header, tensors)

    def check(self, model: PreTrainedModel, tokenizer: Any = None) -> None:
        """Raises ValueError if it was not this model, or this tokenizer, that read the text."""
        of = self.header["model"]
        if of["fingerprint"] != model_fingerprint(model) and of["rounded"] != model_fingerprint(model, ROUNDED):
            raise ValueError(f"{self.folder} was read by another model, {of['class']} with weights {of['fingerprint']}")
        wanted = self.header["tokenizer"]
        if tokenizer is not None and wanted is not None and wanted != tokenizer_fingerprint(tokenizer):
            raise ValueError(f"{self.folder} was read with another tokenizer: load that of its model")

    def policy(self) -> Policy:
        """The policy that it was read under."""
        return Described(**self.header["policy"]).make(self.memory())

    def memory(self) -> NAMM | None:
        """Its memory, if it is one."""
        if self.header["memory"] is None:
            return None
        parts = (self.tensors[f"memory.{name}"] for name in ("flat", "mean", "variance"))
        return NAMM(NAMMConfig.from_dict(self.header["memory"]), *parts)

    def ids(self) -> Tensor | None:
        """Token ids ``[rows, tokens]`` int64 of what was read, if they were saved."""
        found = self.tensors.get("ids")
        return None if found is None else found.long()

    def fill(self, cache: MemoryCache, model: PreTrainedModel) -> MemoryCache:
        """Have an empty cache hold what was saved, in the model's dtype and on its devices; the cache."""
        cache.padding.visible = self.tensors.get("visible")
        layers: Sequence[Any] = cache.layers
        for index, (layer, told) in enumerate(zip(layers, self.header["layers"], strict=True)):
            device, name = _device_of(model, index), f"layers.{index}"
            if not isinstance(layer, MemoryLayer):
                for key, value in (told["values"] | self._under(f"{name}.", model.dtype, device)).items():
                    setattr(layer, key, value)
                layer.dtype, layer.device = model.dtype, device
                continue
            states = [
                _state(own, *self._row(f"{name}.rows.{row}.", own, model.dtype, device))
                for row, own in enumerate(told["rows"])
            ]
            if odd := set(states[0].heads[0]) - set(layer.policy.state) - {"keys", "values", "positions"}:
                raise ValueError(f"{self.folder} holds {', '.join(odd)} of tokens, which {cache.policy.name!r} has not")
            layer.engine.restore(states)
            layer.engine.decided, layer.seen_with_padding = told["decided"], told["seen"]
            options: dict[str, Any] = told["form"] | self._under(f"{name}.", model.dtype, device)
            layer._form = AttentionForm(**options)
            layer.is_initialized = True
        return cache

    def _row(
        self, prefix: str, told: Mapping[str, Any], dtype: torch.dtype, device: torch.device
    ) -> tuple[dict[str, Tensor], Packed | None]:
        """Tensors of a row, and its packed tokens."""
        columns, packed = (self._under(f"{prefix}{part}", dtype, device) for part in ("", "packed."))
        if not packed:
            return columns, None
        frame = packed.pop("frame", None)
        return columns, Packed(told["bits"], dtype, told["packed"], told["sinks"], packed, frame, {})

    def _under(self, prefix: str, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        """Tensors of one layer or row, on its device; of the model's dtype, if they came from the model that read."""
        names = [name for name in self.tensors if name.startswith(prefix) and "." not in name[len(prefix) :]]
        found = {name[len(prefix) :]: self.tensors[name].to(device) for name in names}
        floats = {name for name in LIKE_MODEL & found.keys() if found[name].is_floating_point()}  # codes are none
        return found | {name: found[name].to(dtype) for name in floats}


def _state(told: Mapping[str, Any], found: dict[str, Tensor], packed: Packed | None) -> RowState:
    """A row, from what was told of it and what it holds."""
    pending, carried, normalisers = (found.pop(name, None) for name in ("pending", "carried", "normalisers"))
    assert pending is not None
    columns = {name: column.split(told["lengths"]) for name, column in found.items()}
    heads = [{name: parts[head] for name, parts in columns.items()} for head in range(len(told["lengths"]))]
    compared = told["compared"] and tuple(told["compared"])
    return RowState(heads, pending, carried, normalisers, told["seen"], told["updated"], compared, told["hid"], packed)


def about_model(model: PreTrainedModel) -> dict[str, str]:
    """What a header says of the model, for which all its weights are read."""
    rounded = model_fingerprint(model, ROUNDED)
    return {"class": type(model).__name__, "fingerprint": model_fingerprint(model), "rounded": rounded}


def save(
    cache: MemoryCache,
    folder: str | Path,
    tokenizer: Any,
    ids: Tensor | None,
    notes: Mapping[str, Any],
    about: Mapping[str, str] | None = None,
) -> None:
    """See `MemoryCache.save`.

    Args:
        about: see `about_model`, of who saves many caches of one model; None: it is found out.
    """
    from safetensors.torch import save_file

    forgetting = [layer for layer in cache.layers if isinstance(layer, MemoryLayer)]
    if not forgetting[0].rows:
        raise ValueError("the cache is empty: let a model read a text with it before it is saved")
    tensors: dict[str, Tensor] = {}
    layers = [_described(layer, f"layers.{index}", tensors) for index, layer in enumerate(cache.layers)]
    memory = cache.policy.memory if isinstance(cache.policy, NAMMPolicy) else None
    if memory is not None:
        tensors |= {f"memory.{name}": getattr(memory, name) for name in ("flat", "mean", "variance")}
    if cache.padding.visible is not None:
        tensors["visible"] = cache.padding.visible
    if ids is not None:
        tensors["ids"] = ids.int()
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    header = {
        "format": FORMAT,
        "namm": VERSION,
        "contents": _contents(tensors),
        "model": dict(about or about_model(cache.model)),
        "tokenizer": None if tokenizer is None else tokenizer_fingerprint(tokenizer),
        "policy": asdict(Described.of(cache.policy)),
        "memory": None if memory is None else asdict(memory.config),
        "engine": cache.engine,
        "bits": cache.bits,
        "layers": layers,
        "notes": dict(notes),
    }
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {CONFIG_KEY: strict_json(header)}
    write_atomically(folder / FILE, lambda partial: save_file(tensors, partial, metadata=metadata))


def _described(layer: Any, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What a layer holds: plain values, and its tensors by name."""
    if not isinstance(layer, MemoryLayer):
        found = vars(layer)
        odd = [key for key, value in found.items() if isinstance(value, dict | list) and value]
        if odd:
            raise ValueError(f"a layer of the kind {type(layer).__name__} can't be saved: it holds {', '.join(odd)}")
        tensors |= {f"{name}.{key}": value for key, value in found.items() if isinstance(value, Tensor)}
        return {"values": {key: value for key, value in found.items() if isinstance(value, int | float | bool)}}
    if layer._form is None or layer._handed is not None:
        raise ValueError("a call was interrupted between two layers of the cache: reset() it and read again")
    rows = []
    for row, state in enumerate(layer.engine.states()):
        columns = {key: torch.cat([own[key] for own in state.heads]) for key in state.heads[0]}
        columns |= {"pending": state.pending}
        if state.carried is not None and state.normalisers is not None:
            columns |= {"carried": state.carried, "normalisers": state.normalisers}
        tensors |= {f"{name}.rows.{row}.{key}": value for key, value in columns.items()}
        lengths = [len(own["positions"]) for own in state.heads]
        rows.append({"lengths": lengths} | {key: getattr(state, key) for key in TOLD})
        if (packed := state.packed) is not None:
            rows[-1] |= {"bits": packed.bits, "packed": packed.lengths, "sinks": packed.sinks}
            columns = dict(packed.columns) | ({} if packed.frame is None else {"frame": packed.frame})
            tensors |= {f"{name}.rows.{row}.packed.{key}": value for key, value in columns.items()}
    if layer._form.sinks is not None:
        tensors[f"{name}.sinks"] = layer._form.sinks
    form = asdict(replace(layer._form, sinks=None))
    del form["sinks"]
    return {"rows": rows, "decided": layer.engine.decided, "seen": layer.seen_with_padding, "form": form}


def _contents(tensors: Mapping[str, Tensor]) -> str:
    return fingerprint(*(part for item in sorted(tensors.items()) for part in item))


def _device_of(model: PreTrainedModel, layer: int) -> torch.device:
    """Of a decoder layer, which may be another than the model's."""
    layers = getattr(model.get_decoder(), "layers", None)
    parameter = None if layers is None else next(layers[layer].parameters(), None)
    return model.device if parameter is None else parameter.device
