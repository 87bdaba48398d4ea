"""The engine that goes head by head: any policy, and on a CPU no work for slots that hold nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from namm.cache.arithmetic import AttentionForm
from namm.cache.engine import RowState
from namm.cache.lifetimes import Holding, Lifetimes
from namm.cache.row import Row
from namm.cache.row_state import row_of, state_of
from namm.models.rope import Rotary
from namm.policies.base import Policy


class Loops:
    """A layer's batch rows one after the other; see `namm.cache.engine.Engine`.

    Attributes:
        holding: is told what is held while a call is served; None: nobody asks.
    """

    def __init__(self, policy: Policy, layer: int, rotary: Rotary | None, bits: int | None = None) -> None:
        self.policy, self.layer, self.rotary, self.bits = policy, layer, rotary, bits
        self.rows: list[Row] = []
        self.decided = False
        self.holding: Holding | None = None

    def hide(self, hidden: Sequence[Tensor]) -> None:
        """Forget the tokens at these positions of each row."""
        for row, positions in zip(self.rows, hidden, strict=True):
            row.hide(positions)

    def serve(
        self, query: Tensor, keys: Tensor, values: Tensor, real: Tensor | None, form: AttentionForm, waits: bool
    ) -> Tensor:
        """Store and attend new tokens, and decide wherever a block ends."""
        batch, heads, tokens, _ = query.shape
        if not self.rows:
            self.rows = [
                Row.empty(self.policy, self.layer, b, query[b], keys[b], values[b], self.rotary, self.bits)
                for b in range(batch)
            ]
        if real is None:
            outputs = self._serve(query.unbind(), keys.unbind(), values.unbind(), form, waits)
            return (outputs[0][None] if batch == 1 else torch.stack(outputs)).transpose(1, 2)
        picks = [row.nonzero().squeeze(-1).to(query.device) for row in real]
        if self.holding is not None:
            self.holding.columns = picks
        real_queries, real_keys, real_values = (
            [t[b].index_select(1, pick) for b, pick in enumerate(picks)] for t in (query, keys, values)
        )
        output = query.new_zeros(batch, tokens, heads, values.shape[-1])
        for b, served in enumerate(self._serve(real_queries, real_keys, real_values, form, waits)):
            output[b, picks[b]] = served.transpose(0, 1)
        return output

    def recorded(
        self, query: Tensor, keys: Tensor, values: Tensor, real: Tensor | None, form: AttentionForm, holding: Holding
    ) -> Tensor:
        """`serve`, which writes down what is held in each block."""
        self.holding = holding
        try:
            return self.serve(query, keys, values, real, form, waits=False)
        finally:
            self.holding = None

    def _serve(
        self,
        queries: Sequence[Tensor],
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        form: AttentionForm,
        waits: bool,
    ) -> list[Tensor]:
        """Output ``[query heads, n, value width]`` of each row's new tokens; rows may differ in number."""
        lengths = [query.shape[1] for query in queries]
        whole = all(0 < length == row.room(length) for row, length in zip(self.rows, lengths, strict=True))
        if whole and self.holding is None:
            new = zip(self.rows, queries, keys, values, strict=True)
            outputs = [row.advance(query, key, value, form, waits) for row, query, key, value in new]
            self._decide_on_ended()
            return outputs
        outputs = [q.new_empty(q.shape[0], q.shape[1], v.shape[-1]) for q, v in zip(queries, values, strict=True)]
        done = [0] * len(self.rows)
        if self.holding is not None:
            self.holding.rows = [Lifetimes.of(row, new) for row, new in zip(self.rows, lengths, strict=True)]
        while done != lengths:
            for b, row in enumerate(self.rows):
                if done[b] < lengths[b]:
                    span = slice(done[b], done[b] + row.room(lengths[b] - done[b]))
                    piece = queries[b][:, span], keys[b][:, span], values[b][:, span]
                    if self.holding is not None:
                        self.holding.rows[b].note(row, span.stop - span.start)
                    outputs[b][:, span] = row.advance(*piece, form, waits)
                    done[b] = span.stop
            self._decide_on_ended()
        return outputs

    def _decide_on_ended(self) -> None:
        """Ask about the rows whose block has just ended."""
        self.decided |= any(row.due for row in self.rows)
        self.decide([self])

    def settle(self, form: AttentionForm, rows: Sequence[int] | None) -> None:
        """End the block of some rows (None: all) here; what is then due, `decide` asks about."""
        for row in self.rows if rows is None else [self.rows[index] for index in rows]:
            row.settle(form)

    def trim(self) -> None:
        """All that was decided on before is due again."""
        for row in self.rows:
            row.trim()

    def select(self, order: Sequence[int]) -> None:
        """Have the batch rows in another order."""
        # a row that is used once moves; one that is used again is copied
        self.rows = [self.rows[i].clone() if i in order[:n] else self.rows[i] for n, i in enumerate(order)]
        for index, row in enumerate(self.rows):
            row.index = index

    def under(self, policy: Policy) -> Loops:
        """A copy whose rows go on under another policy; what is held now is shared, see `Row.fork`."""
        made = Loops(policy, self.layer, self.rotary, self.bits)
        made.rows, made.decided = [replace(row.fork(), policy=policy) for row in self.rows], self.decided
        return made

    def states(self) -> list[RowState]:
        """What each row holds."""
        return [state_of(row) for row in self.rows]

    def restore(self, states: Sequence[RowState]) -> None:
        """Hold this and nothing else."""
        self.rows = [
            row_of(state, self.policy, self.layer, index, self.rotary, self.bits) for index, state in enumerate(states)
        ]

    @staticmethod
    def decide(engines: Sequence[Loops]) -> None:
        """Ask the policy at once about all heads that are due, of one or of all layers, and free what it lets go."""
        due = [row for engine in engines for row in engine.rows if row.due]
        if not due:
            return
        policy, heads = engines[0].policy, [head for row in due for head in row.due]
        answers = policy.select(heads)
        for head, keep in zip(heads, answers, strict=True):
            if getattr(keep, "dtype", None) != torch.bool or keep.shape != head.positions.shape:
                given = f"{keep.dtype} {list(keep.shape)}" if isinstance(keep, Tensor) else type(keep).__name__
                raise TypeError(
                    f"{type(policy).__name__} must answer with a bool tensor [{head.tokens}], one for each token of "
                    f"the head, not with {given}"
                )
        kept = iter(answers)
        for row in due:
            row.keep([next(kept) for _ in row.due])
