"""One batch row of a layer that forgets: it takes new tokens block by block, and knows when its policy is to decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from namm.cache.arithmetic import AttentionForm, attend, attend_exactly, attend_newest, groups, refuse_infinite
from namm.cache.packed import Packed
from namm.cache.packing import Packing, packing_of
from namm.cache.queries import Queries
from namm.cache.record import Record
from namm.cache.split import SplitStore
from namm.cache.storage import TokenStore
from namm.models.rope import Rotary
from namm.policies.base import Policy
from namm.policies.head import Head, Segments


@dataclass
class Row:
    """What one layer holds for one batch row.

    Tokens come in by `advance`, never past the end of a block. Where one ends, `due` are the heads to decide on, until
    `keep` is told the answers.

    Attributes:
        policy: decides. layer, index: where the row is.
        store: the tokens kept. queries: what the policy has yet to see.
        seen: real tokens so far, which are also the positions; padding is neither stored nor counted.
        updated: `seen` at the last update.
        compared: tokens seen and tokens kept where the heads of all layers were last decided on together, without those
            that a mask has hidden since.
        due: heads to decide on.
        hid: a mask has hidden tokens of this row, so that the newest of them may be gone.
        rotary: how the model turns queries, for a policy that sees them.
        packing: how tokens are packed once they are decided on; None: they are not.
        unpacked: of what is unpacked for a decision the codes.
    """

    policy: Policy
    layer: int
    index: int
    store: TokenStore | SplitStore
    queries: Queries
    seen: int = 0
    updated: int = 0
    compared: tuple[int, int] | None = None
    due: list[Head] = field(default_factory=list)
    hid: bool = False
    rotary: Rotary | None = None
    packing: Packing | None = None
    unpacked: Packed | None = None

    @classmethod
    def empty(
        cls,
        policy: Policy,
        layer: int,
        index: int,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        rotary: Rotary | None = None,
        bits: int | None = None,
    ) -> Row:
        """A row for tokens like these, ``[heads, tokens, width]`` each."""
        store = TokenStore(keys.shape[0], keys, values, policy.state)
        queries = Queries(query.new_empty(query.shape[0], 0, query.shape[2]))
        return cls(policy, layer, index, store, queries, rotary=rotary, packing=packing_of(bits))

    @property
    def fresh(self) -> int:
        """Tokens since the last update."""
        return self.seen - self.updated

    @property
    def undecided(self) -> int:
        """The same; none where the policy decides nothing."""
        return self.fresh if self.policy.update_interval is not None else 0

    def room(self, tokens: int) -> int:
        """How many of so many new tokens fit into the running block."""
        interval = self.policy.update_interval
        return tokens if interval is None else min(tokens, interval - self.fresh)

    def advance(self, query: Tensor, keys: Tensor, values: Tensor, form: AttentionForm, waits: bool = False) -> Tensor:
        """Store and attend new tokens, at most `room` of them; where they end the block, `due` are its heads.

        Args:
            query: ``[query heads, n, width]``. keys, values: ``[KV heads, n, width]``.
            waits: the block does not end before `settle`.

        Returns:
            ``[query heads, n, value width]``.

        Raises:
            ValueError: if attention gave NaN or infinity in a block that is to be judged.
        """
        policy, interval, new = self.policy, self.policy.update_interval, query.shape[1]
        ends, whole = self.fresh + new == interval and not waits, new == interval and not waits
        store = self.own() if ends else self.store
        store.append(keys, values, torch.arange(self.seen, self.seen + new, device=keys.device))
        self.seen += new
        if interval is not None and policy.queries != 0 and not whole:
            self.queries.remember(query, policy.queries)
        watched = self._watched(query if whole else self.queries.recall()) if ends else query[:, :0]
        record = self._record(watched) if whole and watched.shape[1] else None
        if new == 1 and record is None and interval is not None:
            output = attend_newest(query, store, form)
        else:
            shares = enumerate(groups(query, store.heads))
            output = torch.cat([self._attend(h, query[own], own, form, record) for h, own in shares])
        if ends:
            refuse_infinite(output[None], store.heads, self.layer, [self.index], {self.index: self.seen})
            self._observe(watched, form, record)
        return output

    def settle(self, form: AttentionForm) -> None:
        """End the block here, if it is long enough to be decided on: `due` are its heads then.

        A policy that trims is asked unless all layers were just compared; a block that is too short goes on, and all of
        it stays.
        """
        if self.policy.update_interval is None:
            return
        if self.fresh >= max(1, self.policy.smallest_block):
            self._observe(self._watched(self.queries.recall()), form, whole=True)
        elif self.policy.trims and self.updated and (self.compared or (0, 0))[0] != self.seen:
            self.own().make_writable()
            self.due = [replace(self._head(h), undecided=self.fresh, whole=True) for h in range(self.store.heads)]

    def trim(self) -> None:
        """Have the heads decided on together with those of all layers, but for the tokens since the last update."""
        if self.updated:
            self.own().make_writable()
            heads = [replace(self._head(h), seen=self.updated, new=0) for h in range(self.store.heads)]
            self.due = [replace(head.first(head.tokens - self.fresh), whole=True) for head in heads]

    def note(self, column: str, newest: Tensor) -> None:
        """Write to a column of the policy's what the newest tokens have, ``[KV heads, tokens]``."""
        store = self.own()
        store.make_writable()
        for h, found in enumerate(newest):
            store.head(h)[column][-len(found) :] = found

    def keep(self, answers: Sequence[Tensor]) -> None:
        """Forget what the policy let go of the `due` heads, ``[tokens]`` bool each.

        The newest token stays, and so do those that were not asked about.
        """
        indices = []
        for answer, length in zip(answers, self.store.lengths, strict=True):
            asked = len(answer)
            stays = F.pad(answer, (0, length - asked), value=True) if asked < length else answer.clone()
            stays[-1:] = True
            indices.append(stays.nonzero().squeeze(-1))
        self.own().keep(indices)
        self._pack(indices)
        if self.due[0].whole:
            self.compared = self.updated, sum(self.store.lengths) - self.store.heads * self.fresh
        self.due = []

    def hide(self, positions: Tensor) -> None:
        """Forget tokens that a mask hides, as if they had never come: those after them move up.

        Args:
            positions: rising.
        """
        if not len(positions):
            return
        before, kept = self.compared or (0, 0)
        store, stay, counts = self.own(), [], []
        for h in range(store.heads):
            own = store.head(h)["positions"]
            hidden = torch.isin(own, positions)
            kept -= int((hidden & (own < before)).sum())
            stay.append((~hidden).nonzero().squeeze(-1))
            counts.append(torch.searchsorted(positions, own[stay[-1]].to(positions.dtype)))
        if self.compared is not None:
            self.compared = before - int((positions < before).sum()), kept
        store.keep(stay)
        for h, count in enumerate(counts):
            store.head(h)["positions"].sub_(count.int())
        self.queries.hide(positions, self.seen, self.updated)
        self.updated -= int((positions < self.updated).sum())
        self.seen, self.hid = self.seen - len(positions), True
        self._pack(stay)

    def query_bytes(self) -> int:
        """Bytes of the queries held."""
        return self.queries.nbytes()

    def clone(self) -> Row:
        packing = None if self.packing is None else replace(self.packing)
        return replace(
            self, store=self.store.clone(), queries=self.queries.clone(), due=list(self.due), packing=packing
        )

    def fork(self) -> Row:
        """A row that goes on by itself from here. Both share what is held now, until they are decided on."""
        assert not self.due, f"row {self.index} waits for a decision"
        if not isinstance(self.store, SplitStore):
            self.store = SplitStore.of(self.store)
        self.store.forked = True
        return self.clone()

    def check(self) -> None:
        """Raises AssertionError where an invariant does not hold."""
        assert not self.due, f"row {self.index} waits for a decision"
        self.store.check()
        interval, limit, pending = self.policy.update_interval, self.policy.queries, self.queries.pending
        unfinished = self.fresh if interval and limit != 0 else 0
        assert self.hid or pending >= min(unfinished, limit or unfinished), f"{pending} queries held of {unfinished}"
        assert pending <= unfinished or limit == 0, f"{pending} queries held of {unfinished}"
        for h in range(self.store.heads):
            positions = self.store.head(h)["positions"]
            newest = int(positions[-1]) if len(positions) else -1
            assert newest < self.seen, f"head {h} holds token {newest} of {self.seen}"
            assert newest == self.seen - 1 or self.hid, f"head {h} lost its newest token"
            assert len(positions) >= self.fresh, f"head {h} lost tokens between updates"

    def own(self) -> TokenStore:
        """The store, its tokens shared with no other row and unpacked, as whoever writes or decides needs it."""
        if isinstance(self.store, SplitStore):
            if isinstance(self.store.held, Packed):
                self.unpacked = self.store.held
            self.store = self.store.own()
        return self.store

    def _pack(self, kept: Sequence[Tensor]) -> None:
        """Pack what is decided on, where of each head these tokens have just been kept."""
        before, self.unpacked = self.unpacked, None
        if self.packing is not None and self.updated:
            how = self.packing, self.policy.state
            self.store = SplitStore.packed(self.own(), self.fresh, *how, before, kept)

    def _watched(self, queries: Tensor) -> Tensor:
        """Of a block's queries ``[query heads, n, width]`` those that the policy looks at."""
        limit = self.policy.queries
        return queries if limit is None else queries[:, max(0, queries.shape[1] - limit) :]

    def _record(self, watched: Tensor) -> Record:
        return Record.empty(self.own(), watched, self.policy.carry, self.policy.per_query_head)

    def _attend(self, head: int, query: Tensor, own: slice, form: AttentionForm, record: Record | None) -> Tensor:
        """Output of one KV head and its query heads `own`, ``[group, n, value width]``; it fills the record."""
        store, form = self.store, form.of_group(own)
        if self.policy.update_interval is None and form.softcap is None and form.sinks is None:
            kept = store.head(head)
            return attend_exactly(query, kept["keys"], kept["values"], form.scaling)
        keys, values = store.segment(head, "keys"), store.segment(head, "values")
        into = () if record is None else record.of(self.own().slots(head), own)
        return attend(query, keys, values, store.lengths[head], form, *into)  # type: ignore[return-value]

    def _observe(
        self, watched: Tensor, form: AttentionForm, record: Record | None = None, *, whole: bool = False
    ) -> None:
        """Show the policy all heads and what they were paid since the last update, which ends the block.

        Args:
            watched: ``[query heads, n, width]``.
            record: of a block that was attended in one go; None: replay the queries `watched`.
            whole: see `Head`.
        """
        store = self.own()
        spans = store.spans()
        store.make_writable()  # a policy writes to its columns
        if watched.shape[1]:
            if record is None:
                record = self._record(watched)
                for h, own in enumerate(groups(watched, store.heads)):
                    keys, into = store.segment(h, "keys"), record.of(store.slots(h), own)
                    attend(watched[own], keys, None, store.lengths[h], form.of_group(own), *into)
            record.replay(self.queries, store, form, self.updated, self.fresh)
        attention = None if record is None else record.attention
        heads = [replace(self._head(h), whole=whole) for h in range(store.heads)]
        for head, span, own in zip(heads, spans, groups(watched, store.heads), strict=True):
            head.attention = None if attention is None else attention[..., span]
            if self.policy.sees_queries:
                head.queries, head.rotary = watched[own] * form.scaling, self.rotary
        self.policy.observe_layer(heads, Segments(spans, store.columns, attention))
        for head in heads:
            head.attention = head.queries = None
        if record is not None and record.normalisers is not None:
            self.queries.carry(watched[:, -record.normalisers.shape[1] :], record.normalisers)
        self.updated, self.due = self.seen, heads

    def _head(self, head: int) -> Head:
        """One head as a policy sees it between two layers."""
        told = self.store.head(head), self.seen, self.fresh
        return Head(self.layer, self.index, head, *told, compared=self.compared, whole=False)
