"""The mutations of ``mutations.py``: a line of the library each, what it becomes, and the tests that must notice."""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """One change. `old` stands exactly once in `file`, which is named from the package's folder on.

    `also` are more pairs of old and new texts of that file, where one line alone changes nothing.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    also: tuple[tuple[str, str], ...] = ()


MASKS = "tests/cache/test_masks.py"
CACHE = "tests/cache/test_cache.py"
GRADIENTS = "tests/cache/test_gradients.py"
PADDED = "tests/cache/test_padded.py"
CACHE_MUTANTS = "tests/cache/test_cache_mutants.py"
RULES = "tests/policies/test_policies.py"
RULE_MUTANTS = "tests/policies/test_rule_mutants.py"
TABLES = "tests/evaluation/test_evaluation_mutants.py"
DISTIL = "tests/learning/test_distil.py"
REFINE = "tests/learning/test_refine.py"
REGRESSION = "tests/learning/test_refine_regression.py"
PROBE = "tests/learning/test_probe.py"
ROLLOUT = "tests/learning/test_rollout.py"
PASSAGES = "tests/learning/test_passages.py"
DESCENT = "tests/learning/test_descent.py"
RACE = "tests/evolution/test_race.py"

MUTATIONS = [
    # those that no test noticed once
    Mutation(
        "TOVA by the mean of the queries",
        "policies/tova.py",
        "head.attention[-1].float()",
        "head.attention.float().mean(0)",
        (f"{RULES}::test_tova_follows_the_newest_query",),
    ),
    Mutation(
        "a padding mask held through decoding",
        "cache/padding.py",
        "self._judged = None  # a mask of a long prompt is large: do not hold it through decoding",
        "pass",
        (f"{MASKS}::test_no_mask_of_a_prompt_is_held_through_decoding",),
        also=(("self.now = self._judged = None\n        if mask is None", "self.now = None\n        if mask is None"),),
    ),
    Mutation(
        "refining without its bound",
        "learning/refine/regression.py",
        "(gain / multiplier - 1).clamp(-bound, bound)",
        "gain / multiplier - 1",
        (f"{REGRESSION}::test_advantages_are_bounded_on_both_sides",),
    ),
    Mutation(
        "quotations always from a passage's beginning",
        "learning/refine/probe.py",
        "begin = rng.randrange(1, max(2, len(ids) - QUOTE))",
        "begin = 1",
        (f"{PROBE}::test_quotations_are_from_anywhere_but_the_first_token",),
    ),
    Mutation(
        "CMA-ES with every candidate as elite",
        "evolution/strategy.py",
        '"CMA_mu": population // 2',
        '"CMA_mu": population',
        ("tests/evolution/test_strategy.py::test_the_mean_moves_to_the_weighted_better_half",),
    ),
    # the cache
    Mutation(
        "the newest token may go",
        "cache/row.py",
        "            stays[-1:] = True\n",
        "",
        (CACHE_MUTANTS,),
    ),
    Mutation(
        "a query looks one token ahead",
        "cache/arithmetic.py",
        "first_future = tokens - queries + 1",
        "first_future = tokens - queries + 2",
        ("tests/cache/test_arithmetic.py",),
    ),
    Mutation(
        "beams share what they hold",
        "cache/loops.py",
        "self.rows[i].clone() if i in order[:n] else self.rows[i]",
        "self.rows[i]",
        (CACHE,),
    ),
    Mutation(
        "hidden tokens are counted from one",
        "cache/padding.py",
        "positions = before.cumsum(1) - 1",
        "positions = before.cumsum(1)",
        (MASKS,),
    ),
    Mutation(
        "a hidden token leaves its block as long as it was",
        "cache/row.py",
        "self.updated -= int((positions < self.updated).sum())",
        "self.updated -= 0",
        (MASKS, CACHE_MUTANTS),
    ),
    Mutation(
        "the oldest queries are remembered, not the newest",
        "cache/queries.py",
        "held[:, max(0, held.shape[1] - limit) :] if limit",
        "held[:, :limit] if limit",
        (CACHE_MUTANTS,),
    ),
    Mutation(
        "carried queries pay tokens that came after them",
        "cache/record.py",
        "        rows.masked_fill_(positions > when[:, None], 0)  # a query pays newer tokens nothing\n",
        "",
        (CACHE_MUTANTS,),
    ),
    Mutation(
        "carried queries forget the sinks",
        "cache/arithmetic.py",
        "        if self.sinks is not None:\n            sinks = self.sinks.to(found)",
        "        if False:\n            sinks = self.sinks.to(found)",
        (CACHE_MUTANTS,),
    ),
    Mutation(
        "free slots keep what was there",
        "cache/storage.py",
        "fresh = column.new_zeros(sum(capacities), *column.shape[1:])",
        "fresh = column.new_ones(sum(capacities), *column.shape[1:])",
        ("tests/cache/test_storage.py",),
    ),
    # the padded engine
    Mutation(
        "carried queries of padded heads pay tokens that came after them",
        "cache/padded_record.py",
        "        earlier.masked_fill_(newer, 0)  # a query pays newer tokens nothing\n",
        "",
        (PADDED,),
    ),
    Mutation(
        "queries of rows that take fewer tokens are held with gaps",
        "cache/pending.py",
        "torch.where(columns < both - counts, tokens - counts, 0)",
        "torch.zeros_like(columns - counts)",
        (PADDED,),
    ),
    Mutation(
        "free slots of padded heads are attended to",
        "cache/padded_attention.py",
        "mul_(torch.finfo(dtype).min / 2)",
        "mul_(-1.0)",
        (PADDED,),
    ),
    Mutation(
        "free slots of padded heads keep what was forgotten",
        "cache/grid.py",
        "order = torch.where(kept, order, self.end)",
        "order = torch.where(kept, order, 0)",
        (PADDED,),
    ),
    Mutation(
        "padded heads are measured by their free slots too",
        "memory/features.py",
        ">= (tokens - counts + sinks)[..., None]",
        ">= sinks[..., None]",
        (PADDED,),
    ),
    Mutation(
        "what is not up for decision is scored in a padded batch",
        "cache/padded.py",
        "return grid.without(left_out) if any(left_out) else grid",
        "return grid",
        (PADDED,),
    ),
    # policies
    Mutation(
        "a budget of what is left, not of what was seen",
        "policies/base.py",
        "return min(head.tokens, max(1, round(self.allowed(head, head.seen))))",
        "return min(head.tokens, max(1, round(self.allowed(head, head.tokens))))",
        (RULES,),
    ),
    Mutation(
        "H2O without its recent half",
        "policies/h2o.py",
        "return round(self.recent_share * count)",
        "return 0",
        (RULES, RULE_MUTANTS),
    ),
    Mutation(
        "H2O forgets the attention of earlier blocks",
        "policies/h2o.py",
        '["mass"] += column_sum',
        '["mass"][:] = column_sum',
        (RULES, RULE_MUTANTS),
    ),
    Mutation(
        "SnapKV without pooling",
        "policies/snapkv.py",
        "F.max_pool1d(votes[None], self.pool, stride=1, padding=self.pool // 2)[0]",
        "votes",
        (RULES, RULE_MUTANTS),
    ),
    Mutation(
        "heads share no safeguard",
        "policies/pool.py",
        "[round(safeguard * share) for share in shares]",
        "[0 for share in shares]",
        ("tests/policies/test_pool.py",),
    ),
    Mutation(
        "what is not decided on may be trimmed",
        "policies/pool.py",
        "max(1, head.undecided, min(recent(head, count), count))",
        "max(1, min(recent(head, count), count))",
        ("tests/cache/test_budgets.py",),
    ),
    Mutation(
        "a memory that shares a budget is not asked to trim",
        "policies/namm.py",
        'self.trims = self.share is not None and self.across == "model"',
        "self.trims = False",
        ("tests/cache/test_budgets.py",),
    ),
    Mutation(
        "a memory's cap keeps the worst",
        "policies/namm.py",
        "keep[number] = top(own, limits[number], recent=1)",
        "keep[number] = top(-own, limits[number], recent=1)",
        (RULES, RULE_MUTANTS),
    ),
    Mutation(
        "a layer forgets its share of the last time",
        "policies/pool.py",
        "own = kept / heads * even / earlier if earlier else 0.0",
        "own = 0.0",
        ("tests/cache/test_budgets.py",),
    ),
    Mutation(
        "no head has a spread of its own",
        "policies/namm.py",
        "head.positions.double() + 7 * head.index + 31 * head.layer",
        "head.positions.double()",
        ("tests/policies/test_spread.py",),
    ),
    Mutation(
        "layers are compared only where a text is settled",
        "cache/layer.py",
        "if not (self.every and self.policy.trims and self.engine.decided):",
        "if True:",
        ("tests/cache/test_budgets.py",),
    ),
    Mutation(
        "tokens of an unfinished block count where layers are compared",
        "cache/row.py",
        "self.due = [replace(head.first(head.tokens - self.fresh), whole=True) for head in heads]",
        "self.due = [replace(head, seen=self.seen, undecided=self.fresh, whole=True) for head in heads]",
        ("tests/cache/test_budgets.py",),
    ),
    Mutation(
        "a rehearsal may lower a score",
        "policies/namm.py",
        "torch.maximum(scores, known), scores)",
        "known, scores)",
        ("tests/cache/test_rehearsal.py",),
    ),
    # what a memory sees
    Mutation(
        "birth rows of every block are overwritten",
        "memory/features.py",
        'columns["birth"][span.stop - rows : span.stop] = own',
        'columns["birth"][span] = own[-1]',
        ("tests/memory/test_features.py",),
    ),
    Mutation(
        "sinks count where a head is measured",
        "memory/features.py",
        "others = found[..., SINKS:, :] if",
        "others = found if",
        ("tests/memory/test_features.py",),
    ),
    Mutation(
        "birth rows by cache index",
        "memory/birth.py",
        "positions[..., begin:].contiguous()",
        "torch.arange(begin, tokens).expand(*positions.shape[:-1], -1).contiguous()",
        ("tests/memory/test_birth.py",),
    ),
    Mutation(
        "the reach of the backward attention ends with its tile",
        "memory/network.py",
        "band(REACH_TILE, REACH_TILE + reach, 0, reach, device)",
        "band(REACH_TILE, REACH_TILE + reach, 0, reach + 1, device)",
        ("tests/memory/test_network.py",),
    ),
    Mutation(
        "a head's tokens look at the next head's",
        "memory/network.py",
        "if begin + window > end]",
        "if begin > end]",
        ("tests/memory/test_network.py",),
    ),
    Mutation(
        "heads scored together are mixed up",
        "policies/namm.py",
        "for number, own in zip(numbers, scores.split(lengths), strict=True):",
        "for number, own in zip(numbers[::-1], scores.split(lengths), strict=True):",
        ("tests/policies/test_policies.py",),
    ),
    Mutation(
        "a layer is cut in every block of a pass",
        "policies/pool.py",
        "allowed) + ROOM) for own",
        "allowed)) for own",
        ("tests/cache/test_budgets.py",),
    ),
    # learning
    Mutation(
        "distilling learns the expected logarithm",
        "learning/distil/regression.py",
        "return (target - scores).clamp_max(8.0).exp() + scores - target",
        "return (target - scores).square()",
        (f"{DISTIL}::test_the_loss_is_least_at_the_log_of_the_expected_power",),
    ),
    Mutation(
        "a resumed training begins its schedule anew",
        "learning/descent.py",
        '            self._schedule.load_state_dict(state["schedule"])\n',
        "",
        (f"{DISTIL}::test_training_resumes_to_the_same_parameters",),
    ),
    Mutation(
        "padding on the side of the newer tokens",
        "learning/descent.py",
        "(longest - len(row), 0)) for row",
        "(0, longest - len(row))) for row",
        (DESCENT,),
    ),
    Mutation(
        "a constant learning rate",
        "learning/descent.py",
        "        self._schedule.step()\n",
        "",
        (DESCENT,),
    ),
    Mutation(
        "distilling with power 1, whatever was set",
        "learning/distil/regression.py",
        "target = score_of(influence, power, 0.0)",
        "target = score_of(influence, 1.0, 0.0)",
        (f"{DISTIL}::test_the_loss_is_least_at_the_log_of_the_expected_power",),
    ),
    Mutation(
        "the power of the settings does not reach the loss",
        "learning/distil/regression.py",
        "loss = _batch_loss(memory, state.flat, batch, training.power)",
        "loss = _batch_loss(memory, state.flat, batch, 1.0)",
        (DISTIL,),
    ),
    Mutation(
        "recording within the horizon",
        "learning/distil/record.py",
        "head.seen <= self.document - self.horizon",
        "head.seen <= self.document",
        (f"{DISTIL}::test_nothing_is_recorded_within_the_horizon",),
    ),
    Mutation(
        "the memory that acts while recording keeps everything",
        "learning/distil/record.py",
        "            return self.acting.select(heads)\n",
        "            return [torch.ones(head.tokens, dtype=torch.bool) for head in heads]\n",
        (f"{DISTIL}::test_an_acting_memory_adds_recordings_of_what_it_keeps",),
    ),
    Mutation(
        "no memory acts while recording",
        "learning/distil/run.py",
        "record(place, index, acting, next(done))",
        "record(place, index, None, next(done))",
        (DISTIL,),
    ),
    Mutation(
        "influence in earlier blocks counts too",
        "learning/distil/record.py",
        "torch.stack(received[layer, head][updates:])",
        "torch.stack(received[layer, head])",
        (f"{DISTIL}::test_recorded_targets_are_what_the_lack_of_a_token_changes",),
    ),
    Mutation(
        "a distilled memory's scores lie where they fell",
        "learning/distil/regression.py",
        "flat[-1] -= shift\n",
        "flat[-1] -= 0 * shift\n",
        (f"{DISTIL}::test_scores_are_centred_where_the_wished_fraction_is_kept",),
    ),
    Mutation(
        "sinks are moved like any token",
        "learning/refine/regression.py",
        "torch.where(example.sinks, lift, stride",
        "torch.where(example.sinks & False, lift, stride",
        (REGRESSION,),
    ),
    Mutation(
        "sinks weigh no more than other tokens",
        "learning/refine/regression.py",
        "torch.where(example.sinks, SINK_WEIGHT, 1.0)",
        "torch.where(example.sinks, 1.0, 1.0)",
        (REGRESSION,),
    ),
    Mutation(
        "sinks set the multiplier",
        "learning/refine/regression.py",
        "~example.sinks * _decided(example)",
        "_decided(example)",
        (REGRESSION,),
    ),
    Mutation(
        "the newest token is learned from",
        "learning/refine/regression.py",
        "    decided[-1] = False\n",
        "",
        (REGRESSION,),
    ),
    Mutation(
        "any attention makes a sink",
        "learning/refine/probe.py",
        "max(SINK, SHARES / len(observed))",
        "SINK",
        (PROBE,),
    ),
    Mutation(
        "what is recalled does not count",
        "learning/refine/probe.py",
        "passage + recall * recalled).backward()",
        "passage + 0 * recalled).backward()",
        (PROBE,),
    ),
    Mutation(
        "gains with the sign of credit",
        "learning/refine/probe.py",
        "gain = -decision.credit",
        "gain = decision.credit",
        (PROBE,),
    ),
    Mutation(
        "dropped tokens are credited as if they were there",
        "learning/refine/credit.py",
        "torch.where(dropped, 1 + ratio, (1 - ratio).clamp_min_(MINIMUM_REST))",
        "(1 - ratio).clamp_min_(MINIMUM_REST)",
        (ROLLOUT,),
    ),
    Mutation(
        "gradients reach what was dropped",
        "learning/refine/credit.py",
        "probabilities = ratio.masked_fill(dropped, 0)",
        "probabilities = ratio.clone()",
        (ROLLOUT,),
    ),
    Mutation(
        "a token that went later is credited to the end",
        "learning/refine/credit.py",
        "counts = held[later][positions] == kept",
        "counts = torch.ones_like(kept)",
        (ROLLOUT,),
    ),
    Mutation(
        "a block that was cut short counts as a whole one",
        "learning/refine/credit.py",
        "blocks += counts * (len(held[later]) / interval - later)",
        "blocks += counts",
        (ROLLOUT,),
    ),
    Mutation(
        "all heads get the first one's credit",
        "learning/refine/rollout.py",
        "[[block[decision.head] for block in blocks]",
        "[[block[0] for block in blocks]",
        (ROLLOUT,),
    ),
    Mutation(
        "a rollout goes by the first threshold only",
        "learning/refine/rollout.py",
        "self.thresholds[min(self._block(head), len(self.thresholds) - 1)]",
        "self.thresholds[0]",
        (ROLLOUT,),
    ),
    Mutation(
        "a rollout's threshold does not count",
        "learning/refine/rollout.py",
        "self.margins(heads, scores, keep)",
        "scores",
        (ROLLOUT,),
    ),
    Mutation(
        "parameters stay frozen",
        "learning/refine/rollout.py",
        "            parameter.requires_grad_(True)\n",
        "            pass\n",
        (f"{REFINE}::test_refining_gives_the_model_back_as_it_was",),
    ),
    Mutation(
        "parameters stay frozen after an error",
        "learning/refine/rollout.py",
        "    finally:\n        for parameter in wanted:",
        "    except ZeroDivisionError:\n        pass\n    else:\n        for parameter in wanted:",
        (f"{REFINE}::test_refining_gives_the_model_back_as_it_was",),
    ),
    Mutation(
        "every round reads the first round's passages",
        "learning/passages.py",
        "if turn % rounds == own]",
        "if turn % rounds == 0]",
        (PASSAGES,),
    ),
    Mutation(
        "passages always from a document's beginning",
        "learning/passages.py",
        "yield document, 0 if turn < len(order) else rng.randrange(max(1, len(document.text) // 2))",
        "yield document, 0",
        (PASSAGES,),
    ),
    Mutation(
        "passages without a beginning",
        "learning/passages.py",
        "(encode(tokenizer, t)[:, :length]",
        "(encode(tokenizer, t, begins=False)[:, :length]",
        (PASSAGES,),
    ),
    # evaluation, evolution and what they stand on
    Mutation(
        "intervals by the population's deviation",
        "support/statistics.py",
        "ddof=1",
        "ddof=0",
        ("tests/support/test_statistics.py",),
    ),
    Mutation(
        "scores are set against all of the full cache, matched or not",
        "evaluation/table.py",
        'if row["sample"] in full]',
        "if full]",
        (TABLES,),
    ),
    Mutation(
        "an average over tasks counts a task that has no full cache",
        "evaluation/table.py",
        "if not math.isnan(line.relative)]",
        "]",
        (TABLES,),
    ),
    Mutation(
        "rules are compared with the memory, not with the full cache",
        "evaluation/comparison.py",
        "other.loss - full.loss",
        "other.loss - own.loss",
        (TABLES,),
    ),
    Mutation(
        "a failed candidate is as good as the best",
        "evolution/strategy.py",
        "worst = min(good, default=0.0) - 1.0",
        "worst = max(good, default=0.0)",
        ("tests/evolution/test_strategy.py",),
    ),
    Mutation(
        "the worse half of a race goes on",
        "evolution/race.py",
        "key=lambda number: -values[number]",
        "key=lambda number: values[number]",
        (RACE,),
    ),
    Mutation(
        "every round of a race sees the samples of those before again",
        "evolution/run.py",
        "one.number % self.config.rounds == number",
        "one.number <= number",
        (f"{RACE}::test_weak_candidates_are_scored_on_the_first_round_only",),
    ),
    Mutation(
        "one model's text pays for another's",
        "evolution/fitness.py",
        "mean(max(0.0, excess(asked) - config.tolerance) for asked in by_model)",
        "max(0.0, excess(results) - config.tolerance)",
        ("tests/evolution/test_fitness.py",),
    ),
    Mutation(
        "running text is measured against the first candidate",
        "evolution/measure.py",
        "torch.cat([self.start.flat[None], flats])",
        "torch.cat([flats[:1], flats])",
        (f"{RACE}::test_all_candidates_of_a_generation_see_the_same_samples",),
    ),
    Mutation(
        "a branch never compares its layers",
        "cache/cache.py",
        "        self._forgetting[-1].compare()  # put off in a branch only\n",
        "",
        ("tests/cache/test_branch.py", "tests/evolution/test_reading.py"),
    ),
    Mutation(
        "what is read for all goes on into the first eviction",
        "policies/namm.py",
        "return max(1, end - 1)",
        "return end",
        ("tests/evolution/test_reading.py",),
    ),
    Mutation(
        "a shift of all scores counts as a change where a fraction is kept",
        "evolution/directions.py",
        "change.std() if start.config.kept else change.square().mean().sqrt()",
        "change.square().mean().sqrt()",
        ("tests/evolution/test_directions.py",),
    ),
    Mutation(
        "averages decay by a hop, however many queries came",
        "memory/spectrogram.py",
        "[c**queries for c in ema]",
        "[c**16 for c in ema]",
        ("tests/memory/test_spectrogram.py",),
    ),
    Mutation(
        "a torn line of a journal stays",
        "support/journal.py",
        "file.truncate(len(whole))",
        "file.truncate(len(content))",
        ("tests/support/test_journal.py",),
    ),
    # gradients through a layer that forgets
    Mutation(
        "gradients of tokens that left with an earlier block",
        "cache/lifetimes.py",
        "return (self.last[head][:known] >= block).nonzero()",
        "return (self.last[head][:known] >= 0).nonzero()",
        (GRADIENTS,),
    ),
    Mutation(
        "no gradient reaches earlier calls",
        "cache/tape.py",
        "into.index_add_(0, call.places[b][h], whole[:before])",
        "into.index_add_(0, call.places[b][h], whole[:before] * 0)",
        (GRADIENTS,),
    ),
    Mutation(
        "a softcap is taken for straight",
        "cache/backward.py",
        "to_logits *= 1 - (logits / form.softcap).clamp_min(-1).square()",
        "pass",
        (GRADIENTS,),
    ),
    Mutation(
        "sinks learn the wrong way",
        "cache/backward.py",
        "to_sinks -= ((1",
        "to_sinks += ((1",
        (GRADIENTS,),
    ),
    Mutation(
        "checkpointed layers lose the cache",
        "cache/keeping.py",
        "setattr(layer, NAME, True)",
        "pass",
        (GRADIENTS,),
    ),
    Mutation(
        "a layer that is computed again takes another call's decisions",
        "cache/tape.py",
        "return min(reversed(alike), key=",
        "return max(reversed(alike), key=",
        (GRADIENTS,),
    ),
    Mutation(
        "a call that is computed again takes the first one's decisions",
        "cache/checkpoints.py",
        "tape.replayed = number",
        "tape.replayed = 0",
        (GRADIENTS,),
    ),
]
