"""One batch row of a layer that forgets: it takes new tokens block by block, and knows when its policy is to decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from namm.cache.arithmetic import AttentionForm, attend, attend_exactly, log_normaliser, replay
from namm.cache.queries import Queries
from namm.cache.storage import TokenStore
from namm.models.rope import Rotary
from namm.policies.base import Head, Policy


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
    """

    policy: Policy
    layer: int
    index: int
    store: TokenStore
    queries: Queries
    seen: int = 0
    updated: int = 0
    compared: tuple[int, int] | None = None
    due: list[Head] = field(default_factory=list)
    hid: bool = False
    rotary: Rotary | None = None

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
    ) -> Row:
        """A row for tokens like these, ``[heads, tokens, width]`` each."""
        store = TokenStore(keys.shape[0], keys, values, policy.state)
        queries = Queries(query.new_empty(query.shape[0], 0, query.shape[2]))
        return cls(policy, layer, index, store, queries, rotary=rotary)

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
        policy, new, store = self.policy, query.shape[1], self.store
        interval = policy.update_interval
        store.append(keys, values, torch.arange(self.seen, self.seen + new, device=keys.device))
        self.seen += new
        ends, whole = self.fresh == interval and not waits, new == interval and not waits
        if interval is not None and policy.queries != 0 and not whole:
            self.queries.remember(query, policy.queries)
        watched = self._watched(query if whole else self.queries.recall()) if ends else query[:, :0]
        outputs, observed = [], []
        for h, own in enumerate(self.groups(query)):
            group_form = form.of_group(own)
            record = self._record(h, watched[own]) if whole and watched.shape[1] else None
            outputs.append(self._attend(h, query[own], group_form, record))
            if ends:
                self._refuse_infinite(outputs[-1], h, new)
                observed.append(self._observe(h, watched[own], group_form, record))
        if ends:
            self._end_block(watched, observed)
        return torch.cat(outputs)

    def settle(self, form: AttentionForm) -> None:
        """End the block here, if it is long enough to be decided on: `due` are its heads then.

        A policy that trims is asked unless all layers were just compared; a block that is too short goes on, and all of
        it stays.
        """
        if self.policy.update_interval is None:
            return
        if self.fresh >= max(1, self.policy.smallest_block):
            watched = self._watched(self.queries.recall())
            groups = enumerate(self.groups(watched))
            seen = [self._observe(h, watched[own], form.of_group(own), None, whole=True) for h, own in groups]
            self._end_block(watched, seen)
        elif self.policy.trims and self.updated and (self.compared or (0, 0))[0] != self.seen:
            self.store.make_writable()
            self.due = [replace(self._head(h), undecided=self.fresh, whole=True) for h in range(self.store.heads)]

    def trim(self) -> None:
        """Have the heads decided on together with those of all layers, but for the tokens since the last update."""
        if self.updated:
            self.store.make_writable()
            heads = [replace(self._head(h), seen=self.updated, new=0) for h in range(self.store.heads)]
            self.due = [replace(head.first(head.tokens - self.fresh), whole=True) for head in heads]

    def note(self, column: str, newest: Tensor) -> None:
        """Write to a column of the policy's what the newest tokens have, ``[KV heads, tokens]``."""
        self.store.make_writable()
        for h, found in enumerate(newest):
            self.store.head(h)[column][-len(found) :] = found

    def keep(self, answers: Sequence[Tensor]) -> None:
        """Forget what the policy let go of the `due` heads, ``[tokens]`` bool each.

        The newest token stays, and so do those that were not asked about.
        """
        indices = []
        for answer, length in zip(answers, self.store.lengths, strict=True):
            stays = F.pad(answer, (0, length - len(answer)), value=True)
            stays[-1:] = True
            indices.append(stays.nonzero().squeeze(-1))
        self.store.keep(indices)
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
        stay, counts = [], []
        for h in range(self.store.heads):
            own = self.store.head(h)["positions"]
            hidden = torch.isin(own, positions)
            kept -= int((hidden & (own < before)).sum())
            stay.append((~hidden).nonzero().squeeze(-1))
            counts.append(torch.searchsorted(positions, own[stay[-1]].to(positions.dtype)))
        if self.compared is not None:
            self.compared = before - int((positions < before).sum()), kept
        self.store.keep(stay)
        for h, count in enumerate(counts):
            self.store.head(h)["positions"].sub_(count.int())
        self.queries.hide(positions, self.seen, self.updated)
        self.updated -= int((positions < self.updated).sum())
        self.seen -= len(positions)
        self.hid = True

    def clone(self) -> Row:
        return replace(self, store=self.store.clone(), queries=self.queries.clone(), due=list(self.due))

    def check(self) -> None:
        """Raises AssertionError where an invariant does not hold."""
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

    def groups(self, query: Tensor) -> list[slice]:
        """Of each KV head the query heads that share it."""
        group = query.shape[0] // self.store.heads
        return [slice(h * group, (h + 1) * group) for h in range(self.store.heads)]

    def _watched(self, queries: Tensor) -> Tensor:
        """Of a block's queries ``[query heads, n, width]`` those that the policy looks at."""
        limit = self.policy.queries
        return queries if limit is None else queries[:, max(0, queries.shape[1] - limit) :]

    def _record(self, head: int, watched: Tensor) -> Tensor:
        """Zeros for the attention that the policy sees of queries ``[group, n, width]``, free slots included."""
        keys = self.store.segment(head, "keys")
        shape = (self.policy.carry + watched.shape[1], keys.shape[0])
        return keys.new_zeros((len(watched), *shape) if self.policy.per_query_head else shape)

    def _attend(self, head: int, query: Tensor, form: AttentionForm, record: Tensor | None) -> Tensor:
        """Output of one KV head, ``[group, n, value width]``; the newest queries' attention fills the record."""
        store = self.store
        if self.policy.update_interval is None and form.softcap is None and form.sinks is None:
            kept = store.head(head)
            return attend_exactly(query, kept["keys"], kept["values"], form.scaling)
        fresh = record[..., self.policy.carry :, :] if record is not None else None
        keys, values = store.segment(head, "keys"), store.segment(head, "values")
        output = attend(query, keys, values, store.lengths[head], form, fresh)
        assert output is not None
        return output

    def _refuse_infinite(self, output: Tensor, head: int, new: int) -> None:
        if not bool(torch.isfinite(output).all()):
            raise ValueError(
                f"layer {self.layer}, batch row {self.index}, KV head {head}: attention gave NaN or infinity in the "
                f"{new} tokens before token {self.seen}; a policy can't judge such values (try another dtype)"
            )

    def _observe(
        self, head: int, watched: Tensor, form: AttentionForm, record: Tensor | None, *, whole: bool = False
    ) -> tuple[Head, Tensor | None]:
        """Show the policy one head and what it was paid since the last update.

        Args:
            watched: ``[group, n, width]``.
            record: the attention of a block that was attended in one go; None: replay the queries `watched`.
            whole: see `Head`.

        Returns:
            The head, and the log normalisers ``[group, carry]`` of the last queries, for the next block.
        """
        self.store.make_writable()  # a policy writes to its columns
        found, normalisers = replace(self._head(head), whole=whole), None
        if watched.shape[1]:
            keys, carry = self.store.segment(head, "keys"), self.policy.carry
            if record is None:
                record = self._record(head, watched)
                attend(watched, keys, None, found.tokens, form, record[..., carry:, :])
            if carry:
                self._replay_carried(head, form, record)
                normalisers = log_normaliser(watched[:, -carry:], keys, found.tokens, form)
            found.attention = record[..., : found.tokens]
        if self.policy.sees_queries:
            found.queries, found.rotary = watched * form.scaling, self.rotary
        found.summary = self.policy.observe(found)
        found.attention = found.queries = None
        return found, normalisers

    def _head(self, head: int) -> Head:
        """One head as a policy sees it between two layers."""
        columns = self.store.head(head)
        return Head(self.layer, self.index, head, columns, self.seen, self.fresh, compared=self.compared, whole=False)

    def _replay_carried(self, head: int, form: AttentionForm, record: Tensor) -> None:
        """Fill the first rows of the record with the attention of the previous block's last queries.

        They are replayed on the keys that are left of those they saw; new keys keep their zeros.
        """
        queries, carry = self.queries, self.policy.carry
        if queries.carried is None or queries.normalisers is None:
            return
        keys, old = self.store.segment(head, "keys"), self.store.lengths[head] - self.fresh
        own = self.groups(queries.carried)[head]
        earlier = record[..., :carry, :old]
        replay(queries.carried[own], queries.normalisers[own], keys, form, earlier)
        asked = torch.arange(self.updated - carry, self.updated, device=keys.device)
        positions = self.store.head(head)["positions"][:old]
        earlier.masked_fill_(positions > asked[:, None], 0)  # a query pays newer tokens nothing

    def _end_block(self, watched: Tensor, observed: Sequence[tuple[Head, Tensor | None]]) -> None:
        normalisers = [own for _, own in observed if own is not None]
        if normalisers:
            self.queries.carry(watched[:, -normalisers[0].shape[-1] :], torch.cat(normalisers))
        self.updated, self.due = self.seen, [head for head, _ in observed]
