"""One full-attention layer that forgets: stores, attends and asks its policy, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from namm.cache.arithmetic import Logits, attend, attend_exactly, log_normaliser, replay
from namm.cache.block import Row
from namm.cache.handover import IMPLEMENTATION, HandedTensor, UnsupportedModelError
from namm.cache.padding import PaddingMask
from namm.cache.storage import TokenStore
from namm.policies.base import Head, Policy


class MemoryLayer(CacheLayerMixin):
    """`update` only hands the new tokens on; the work is done in `attend`, where the queries are known.

    A prompt is taken in blocks of the policy's update interval, counted for every row from its last update. Between
    blocks that a prompt fills at once nothing but the kept tokens is held; queries of an unfinished block (the end of a
    prompt, or decoding) are held until it is full or `settle` ends it, and replayed then.

    Attributes:
        rows: one for each batch row, none before the first tokens.
        seen_with_padding: tokens so far as transformers counts them.
    """

    is_compileable = False
    is_croppable = False
    is_sliding = False
    supports_early_init = False

    def __init__(self, index: int, policy: Policy, padding: PaddingMask) -> None:
        super().__init__()
        self.index, self.policy, self.padding = index, policy, padding
        self.reset()

    def reset(self) -> None:
        self.rows: list[Row] = []
        self.seen_with_padding = 0
        self.is_initialized = False
        self._handed: tuple[Tensor, Tensor] | None = None
        self._logits: Logits | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def get_seq_length(self) -> int:
        """Tokens seen, padding included, never tokens kept: positions and generate's slicing follow from it."""
        return self.seen_with_padding

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The mask covers the new tokens only: all that is kept is visible, and padding is never stored."""
        return query_length, self.seen_with_padding

    def get_max_length(self) -> int:
        return -1

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Hands on the new tokens ``[batch, KV heads, tokens, width]``; nothing is stored before `attend`."""
        if self._handed is not None:
            raise UnsupportedModelError(
                f"layer {self.index} updated its cache twice without attending through {IMPLEMENTATION!r}: the model's "
                "attention can't be served, or an earlier call was interrupted; reset() the cache to use it again"
            )
        if self.rows and len(self.rows) != key_states.shape[0]:
            raise ValueError(
                f"this cache holds {len(self.rows)} batch rows and was given {key_states.shape[0]}; make a new "
                "MemoryCache, or call its batch_repeat_interleave first"
            )
        self.is_initialized = True
        self._handed = key_states, value_states
        return HandedTensor.hand(key_states, self), HandedTensor.hand(value_states, self)

    @torch.no_grad()
    def attend(self, query: Tensor, mask: Tensor | None, logits: Logits) -> Tensor:
        """Attention of the new tokens, which are stored on the way; no gradient passes.

        Args:
            query: ``[batch, query heads, tokens, width]``. mask: see `PaddingMask`.
            logits: how this model attends, its sinks ``[query heads]``.

        Returns:
            ``[batch, tokens, query heads, value width]``; zeros for padding.
        """
        if self._handed is None:
            raise UnsupportedModelError(f"layer {self.index} attends without having updated its cache")
        keys, values = self._handed
        batch, tokens = query.shape[0], query.shape[2]
        if tokens != keys.shape[2]:
            raise UnsupportedModelError(
                f"layer {self.index} attends with {tokens} queries for {keys.shape[2]} new tokens"
            )
        self._logits = logits
        real = self.padding.real_tokens(mask, batch, tokens)
        if not self.rows:
            self.rows = [self._new_row(query[b], keys[b], values[b]) for b in range(batch)]
        if real is None:
            output = torch.stack(self._serve(list(query), list(keys), list(values), logits)).transpose(1, 2)
        else:
            picks = [row.nonzero().squeeze(-1) for row in real]
            real_queries, real_keys, real_values = (
                [t[b].index_select(1, pick) for b, pick in enumerate(picks)] for t in (query, keys, values)
            )
            output = query.new_zeros(batch, tokens, query.shape[1], values.shape[-1])
            for b, served in enumerate(self._serve(real_queries, real_keys, real_values, logits)):
                output[b, picks[b]] = served.transpose(0, 1)
        self.seen_with_padding += tokens
        self._handed = None
        return output

    def _new_row(self, query: Tensor, keys: Tensor, values: Tensor) -> Row:
        return Row(
            TokenStore(keys.shape[0], keys, values, self.policy.state),
            query.new_empty(query.shape[0], 0, query.shape[2]),
        )

    def _serve(
        self, queries: Sequence[Tensor], keys: Sequence[Tensor], values: Sequence[Tensor], logits: Logits
    ) -> list[Tensor]:
        """Output ``[query heads, n, value width]`` of each row's new tokens; rows may differ in number."""
        interval = self.policy.update_interval
        lengths = [query.shape[1] for query in queries]
        outputs = [q.new_empty(q.shape[0], q.shape[1], v.shape[-1]) for q, v in zip(queries, values, strict=True)]
        done = [0] * len(self.rows)
        while done != lengths:
            updates: list[tuple[Row, list[Head]]] = []
            for b, row in enumerate(self.rows):
                if done[b] == lengths[b]:
                    continue
                left = lengths[b] - done[b]
                span = slice(done[b], done[b] + (min(left, interval - row.fresh) if interval else left))
                done[b] = span.stop
                outputs[b][:, span], heads = self._advance(
                    row, b, queries[b][:, span], keys[b][:, span], values[b][:, span], logits
                )
                if heads:
                    updates.append((row, heads))
            if updates:
                self._forget(updates)
        return outputs

    def _advance(
        self, row: Row, index: int, query: Tensor, keys: Tensor, values: Tensor, logits: Logits
    ) -> tuple[Tensor, list[Head]]:
        """Store and attend tokens that lie within one block; where they end it, also the heads to decide on."""
        policy, new = self.policy, query.shape[1]
        interval = policy.update_interval
        row.store.append(keys, values, torch.arange(row.seen, row.seen + new, device=keys.device))
        row.seen += new
        at_update = row.fresh == interval
        whole_block = new == interval
        if interval is not None and policy.queries != 0 and not whole_block:
            row.remember(query, policy.queries)
        watched = self._watched(query if whole_block else row.recall() if at_update else query[:, :0])

        group = query.shape[0] // keys.shape[0]
        outputs, records = [], []
        for h in range(keys.shape[0]):
            own = slice(h * group, (h + 1) * group)
            record = self._new_record(row, h, group, watched.shape[1]) if whole_block and watched.shape[1] else None
            output = self._attend_head(query[own], row.store, h, logits.of_group(own), record)
            outputs.append(output)
            if at_update and not bool(torch.isfinite(output).all()):
                raise ValueError(
                    f"layer {self.index}, batch row {index}, KV head {h}: attention gave NaN or infinity in the "
                    f"{new} tokens before token {row.seen}; a policy can't judge such values (try another dtype)"
                )
            if at_update:
                records.append(self._observe(row, index, h, watched, logits, record))
        return torch.cat(outputs), self._end_block(row, watched, records)

    def _watched(self, queries: Tensor) -> Tensor:
        """Of a block's queries ``[query heads, n, width]`` those that the policy looks at."""
        limit = self.policy.queries
        return queries if limit is None else queries[:, max(0, queries.shape[1] - limit) :]

    def _observe(
        self, row: Row, index: int, h: int, watched: Tensor, logits: Logits, record: Tensor | None
    ) -> tuple[Head, Tensor | None]:
        """Show the policy a head and what it was paid since the last update.

        Args:
            record: the attention of a block that was attended in one go; None: replay the queries `watched`.

        Returns:
            The head, and the log normalisers ``[group, carry]`` for the next block.
        """
        policy, store = self.policy, row.store
        group = watched.shape[0] // store.heads
        own = slice(h * group, (h + 1) * group)
        head = Head(self.index, index, h, store.head(h), row.seen, row.fresh)
        normaliser = None
        if watched.shape[1]:
            if record is None:
                record = self._new_record(row, h, group, watched.shape[1])
                fresh = record[..., policy.carry :, :]
                attend(watched[own], store.segment(h, "keys"), None, head.tokens, logits.of_group(own), fresh)
            if policy.carry:
                normaliser = self._carry_over(row, h, own, watched[own], record, logits.of_group(own))
            head.attention = record[..., : head.tokens]
        head.summary, head.attention = policy.observe(head), None
        return head, normaliser

    @staticmethod
    def _end_block(row: Row, watched: Tensor, observed: Sequence[tuple[Head, Tensor | None]]) -> list[Head]:
        """Begin the row's next block, if its heads were observed."""
        normalisers = [normaliser for _, normaliser in observed if normaliser is not None]
        if normalisers:
            row.carried = watched[:, -normalisers[0].shape[-1] :].clone()
            row.carried_normalisers = torch.cat(normalisers)
        if observed:
            row.updated = row.seen
        return [head for head, _ in observed]

    @torch.no_grad()
    def settle(self) -> None:
        """Decide now about the tokens since the last update, as if a block ended here; see `MemoryCache.settle`."""
        policy, logits = self.policy, self._logits
        if policy.update_interval is None or logits is None:
            return
        updates = []
        for index, row in enumerate(self.rows):
            if row.fresh >= max(1, policy.smallest_block):
                watched = self._watched(row.recall())
                observed = [self._observe(row, index, h, watched, logits, None) for h in range(row.store.heads)]
                updates.append((row, self._end_block(row, watched, observed)))
        if updates:
            self._forget(updates)

    def _new_record(self, row: Row, head: int, group: int, queries: int) -> Tensor:
        """Zeros for the attention that a policy sees, free slots included."""
        keys = row.store.segment(head, "keys")
        shape = (self.policy.carry + queries, keys.shape[0])
        return keys.new_zeros((group, *shape) if self.policy.per_query_head else shape)

    def _attend_head(
        self, query: Tensor, store: TokenStore, head: int, logits: Logits, record: Tensor | None
    ) -> Tensor:
        tokens = store.lengths[head]
        if self.policy.update_interval is None and logits.softcap is None and logits.sinks is None:
            kept = store.head(head)
            return attend_exactly(query, kept["keys"], kept["values"], logits.scaling)
        fresh = record[..., self.policy.carry :, :] if record is not None else None
        output = attend(query, store.segment(head, "keys"), store.segment(head, "values"), tokens, logits, fresh)
        assert output is not None
        return output

    def _carry_over(self, row: Row, head: int, own: slice, recent: Tensor, record: Tensor, logits: Logits) -> Tensor:
        """Fill the first rows of the record with the attention of the previous block's last queries.

        They are replayed on the keys that are left of those they saw; new keys keep their zeros.

        Returns:
            The log normalisers ``[group, carry]`` of this block's last queries, for the next block.
        """
        carry, keys, tokens = self.policy.carry, row.store.segment(head, "keys"), row.store.lengths[head]
        if row.carried is not None and row.carried_normalisers is not None:
            old = tokens - row.fresh
            earlier = record[..., :carry, :old]
            replay(row.carried[own], row.carried_normalisers[own], keys, logits, earlier)
            asked = torch.arange(row.updated - carry, row.updated, device=keys.device)
            positions = row.store.head(head)["positions"][:old]
            earlier.masked_fill_(positions > asked[:, None], 0)  # a query pays newer tokens nothing
        return log_normaliser(recent[:, -carry:], keys, tokens, logits)

    def _forget(self, updates: Sequence[tuple[Row, list[Head]]]) -> None:
        """Ask the policy about all heads of all rows that are at an update, and free what it lets go."""
        heads = [head for _, row_heads in updates for head in row_heads]
        answers = self.policy.select(heads)
        for head, keep in zip(heads, answers, strict=True):
            if getattr(keep, "dtype", None) != torch.bool or keep.shape != head.positions.shape:
                given = f"{keep.dtype} {list(keep.shape)}" if isinstance(keep, Tensor) else type(keep).__name__
                raise TypeError(
                    f"{type(self.policy).__name__} must answer with a bool tensor [{head.tokens}], one for each "
                    f"token of the head, not with {given}"
                )
        kept = iter(answers)
        for row, row_heads in updates:
            indices = []
            for _ in row_heads:
                keep = next(kept).clone()
                keep[-1] = True  # the newest token always stays
                indices.append(keep.nonzero().squeeze(-1))
            row.store.keep(indices)

    # what moves batch rows moves everything a row holds

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.batch_select_indices(torch.arange(len(self.rows)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        if not self.rows:
            return
        order = [int(i) for i in (indices.nonzero().squeeze(-1) if indices.dtype == torch.bool else indices)]
        # a row that is used once moves; one that is used again is copied
        self.rows = [self.rows[i].clone() if i in order[:n] else self.rows[i] for n, i in enumerate(order)]

    def offload(self) -> None:
        raise UnsupportedModelError("a MemoryCache can't be offloaded; it is small because it forgets")

    def prefetch(self) -> None:
        raise UnsupportedModelError("a MemoryCache can't be offloaded; it is small because it forgets")

    def undecided(self, row: Row) -> int:
        """Tokens of a row since the last decision; none where the policy decides nothing."""
        return row.fresh if self.policy.update_interval is not None else 0

    def check(self) -> None:
        """Raises AssertionError where an invariant of the layer does not hold."""
        interval = self.policy.update_interval
        for row in self.rows:
            row.store.check()
            fresh = row.fresh
            unfinished = fresh if interval and self.policy.queries != 0 else 0
            limit = self.policy.queries
            assert row.pending >= min(unfinished, limit or unfinished), f"{row.pending} queries held of {unfinished}"
            assert row.pending <= unfinished or limit == 0, f"{row.pending} queries held of {unfinished}"
            for h in range(row.store.heads):
                positions = row.store.head(h)["positions"]
                assert len(positions) and int(positions[-1]) == row.seen - 1, f"head {h} lost its newest token"
                assert len(positions) >= fresh, f"head {h} lost tokens between updates"
