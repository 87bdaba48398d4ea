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
CACHE_MUTANTS = "tests/cache/test_cache_mutants.py"
RULES = "tests/policies/test_policies.py"
RULE_MUTANTS = "tests/policies/test_rule_mutants.py"
LEARNING = "tests/learning/test_learning_mutants.py"
REFINE = "tests/learning/test_refine.py"
LESSONS = "tests/learning/test_lessons.py"
TABLES = "tests/evaluation/test_evaluation_mutants.py"
DISTIL = "tests/learning/test_distil.py"

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
        "learning/refine/learn.py",
        "(worth / price - 1).clamp(-bound, bound)",
        "worth / price - 1",
        (LEARNING,),
    ),
    Mutation(
        "calibration without the secant step",
        "learning/calibrate.py",
        "if abs(found[length] - before) > 0.005:",
        "if False:",
        (LEARNING,),
    ),
    Mutation(
        "quotations always from a passage's beginning",
        "learning/refine/lessons.py",
        "begin = rng.randrange(1, max(2, tokens - QUOTE))",
        "begin = 1",
        (LEARNING,),
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
        "            stays[-1] = True\n",
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
        "cache/layer.py",
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
        "cache/row.py",
        "        earlier.masked_fill_(positions > asked[:, None], 0)  # a query pays newer tokens nothing\n",
        "",
        (CACHE_MUTANTS,),
    ),
    Mutation(
        "carried queries forget the sinks",
        "cache/arithmetic.py",
        "    if form.sinks is not None:\n        sinks = form.sinks.to(found)",
        "    if False:\n        sinks = form.sinks.to(found)",
        (CACHE_MUTANTS,),
    ),
    Mutation(
        "free slots keep what was there",
        "cache/storage.py",
        "fresh = column.new_zeros(sum(capacities), *column.shape[1:])",
        "fresh = column.new_ones(sum(capacities), *column.shape[1:])",
        ("tests/cache/test_storage.py",),
    ),
    # policies
    Mutation(
        "a budget of what is left, not of what was seen",
        "policies/base.py",
        "round(budget * head.seen)",
        "round(budget * head.tokens)",
        (RULES,),
    ),
    Mutation(
        "H2O without its recent half",
        "policies/h2o.py",
        "recent=max(1, round(self.recent * count))",
        "recent=1",
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
        "a memory's cap keeps the worst",
        "policies/namm.py",
        "keep = top(scores, limit, recent=1)",
        "keep = top(-scores, limit, recent=1)",
        (RULES, RULE_MUTANTS),
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
        (LEARNING,),
    ),
    Mutation(
        "attention sinks are judged like any token",
        "learning/refine/learn.py",
        "torch.where(lesson.sinks, lift, stride",
        "torch.where(lesson.sinks & False, lift, stride",
        (REFINE,),
    ),
    Mutation(
        "the newest token teaches",
        "learning/refine/learn.py",
        "    counts[-1] = False\n",
        "",
        (LEARNING,),
    ),
    Mutation(
        "what is recalled does not count",
        "learning/refine/lessons.py",
        "passage + recall * recalled).backward()",
        "passage + 0 * recalled).backward()",
        (LESSONS,),
    ),
    Mutation(
        "passages always from a document's beginning",
        "learning/passages.py",
        "yield document, 0 if turn < len(order) else rng.randrange(max(1, len(document.text) // 2))",
        "yield document, 0",
        (LEARNING,),
    ),
    Mutation(
        "calibration corrects in the wrong direction",
        "learning/calibrate.py",
        "steps[n] * (fraction - found[n])",
        "steps[n] * (found[n] - fraction)",
        (LEARNING,),
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
        "averages decay by a hop, however many queries came",
        "memory/spectrogram.py",
        "[c**queries for c in config.ema]",
        "[c**config.hop for c in config.ema]",
        ("tests/memory/test_spectrogram.py",),
    ),
    Mutation(
        "a torn line of a journal stays",
        "support/journal.py",
        "file.truncate(len(whole))",
        "file.truncate(len(content))",
        ("tests/support/test_journal.py",),
    ),
]
