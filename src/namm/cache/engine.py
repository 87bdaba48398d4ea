"""What a layer does with new tokens stands behind one interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from namm.cache.arithmetic import AttentionForm
    from namm.cache.packed import Packed
    from namm.policies.base import Policy


class HeldRow(Protocol):
    """What one layer holds for one batch row, as others may ask for it.

    Attributes:
        store: ``heads``, ``lengths`` of each, ``head(h)`` with views of the columns, ``nbytes(*names)``.
        index: of the row.
        seen: real tokens so far.
        undecided: of these, how many came since the last decision.
    """

    @property
    def index(self) -> int: ...
    @property
    def store(self) -> Any: ...
    @property
    def seen(self) -> int: ...
    @property
    def undecided(self) -> int: ...
    def room(self, tokens: int) -> int: ...
    def note(self, column: str, newest: Tensor) -> None: ...
    def query_bytes(self) -> int: ...
    def check(self) -> None: ...


@dataclass(frozen=True)
class RowState:
    """All that a batch row holds, for a file.

    Attributes:
        heads: columns of the tokens of each head, ``[tokens, ...]``; of those that are not packed.
        pending: queries since the last update, ``[query heads, n, width]``.
        carried: see `namm.cache.queries.Queries`; so are `normalisers`.
        seen: see `namm.cache.row.Row`; so are `updated`, `compared` and `hid`.
        packed: tokens before these, if there are any.
    """

    heads: Sequence[Mapping[str, Tensor]]
    pending: Tensor
    carried: Tensor | None
    normalisers: Tensor | None
    seen: int
    updated: int
    compared: tuple[int, int] | None
    hid: bool
    packed: Packed | None = None


class Engine(Protocol):
    """The batch rows of one layer: how they are stored, attended to and decided on.

    Attributes:
        rows: one for each batch row, none before the first tokens.
        decided: something was decided on since all layers were last compared.
    """

    decided: bool

    @property
    def rows(self) -> Sequence[HeldRow]: ...

    def hide(self, hidden: Sequence[Tensor]) -> None:
        """Forget the tokens at these positions of each row, rising, as if they had never come."""

    def serve(
        self, query: Tensor, keys: Tensor, values: Tensor, real: Tensor | None, form: AttentionForm, waits: bool
    ) -> Tensor:
        """Store and attend new tokens, and decide wherever a block ends.

        Args:
            query: ``[batch, query heads, tokens, width]``. keys, values: ``[batch, KV heads, tokens, width]``.
            real: ``[batch, tokens]`` bool; None: all are.
            waits: no block ends before `settle`.

        Returns:
            ``[batch, tokens, query heads, value width]``, zeros for padding.
        """
        ...

    def settle(self, form: AttentionForm, rows: Sequence[int] | None) -> None:
        """End the block of some rows (None: all) here; what is then due, `decide` asks about."""

    def trim(self) -> None:
        """All that was decided on before is due again."""

    @staticmethod
    def decide(engines: Any) -> None:
        """Ask the policy about all that is due in these engines of one kind, and free what it lets go."""

    def select(self, order: Sequence[int]) -> None:
        """Have the batch rows in another order; some may come more than once, or not at all."""

    def under(self, policy: Policy) -> Engine:
        """A copy whose rows go on under another policy; it may share what is held until one of the two writes to it."""
        ...

    def states(self) -> list[RowState]:
        """What each row holds; views where that is no work."""
        ...

    def restore(self, states: Sequence[RowState]) -> None:
        """Hold this and nothing else."""
