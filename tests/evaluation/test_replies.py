from __future__ import annotations

import pytest
import torch

from namm import NAMM, NAMMConfig
from namm.evaluation import replies
from namm.evaluation.replies import Prompt, reply
from namm.policies import H2O, Full, NAMMPolicy
from namm.tasks.answering import read

MEMORY = NAMM(NAMMConfig(update_interval=32))


def prompt(ids: torch.Tensor, context: int, question: int = 8) -> Prompt:
    return Prompt(ids[0, :context], ids[0, context : context + question])


def test_the_full_cache_answers_as_the_plain_model(tiny, ids, characters) -> None:
    one = prompt(ids, 100)
    expected = tiny.generate(ids[:, :108], max_new_tokens=6, do_sample=False)[0, 108:]
    for seen in (False, True):
        found = reply(tiny, characters, [one], Full(), new_tokens=6, question_seen=seen)[0]
        assert found.text == characters.decode(expected)
        assert (found.kept_fraction, found.log_probability) == (1.0, None)
        assert found.held_fraction >= 1


@pytest.mark.parametrize("policy", [H2O(budget=0.3, update_interval=32), NAMMPolicy(MEMORY)], ids=lambda p: p.name)
@pytest.mark.parametrize("seen", [False, True])
def test_a_batch_answers_as_its_prompts_alone(tiny, ids, characters, policy, seen) -> None:
    prompts = [prompt(ids, 130), prompt(ids[:, 20:], 75, question=3)]
    together = reply(tiny, characters, prompts, policy, new_tokens=6, question_seen=seen)
    for one, found in zip(prompts, together, strict=True):
        alone = reply(tiny, characters, [one], policy, new_tokens=6, question_seen=seen)[0]
        assert (found.text, found.kept_fraction) == (alone.text, alone.kept_fraction)


def test_a_budget_is_met_at_any_length(tiny, ids, characters) -> None:
    for seen, counted in ((False, 101), (True, 108)):
        found = reply(
            tiny, characters, [prompt(ids, 101)], H2O(budget=0.25, update_interval=32), new_tokens=1, question_seen=seen
        )[0]
        assert found.kept_fraction == pytest.approx(round(0.25 * counted) / counted)


def test_a_reference_is_scored_as_the_plain_model_scores_it(tiny, ids, characters) -> None:
    with torch.no_grad():
        logits = tiny(ids[:, :112]).logits[0, 107:111].log_softmax(-1)
    expected = float(logits.gather(1, ids[0, 108:112, None]).mean())
    for seen in (False, True):
        found = reply(
            tiny, characters, [prompt(ids, 100)], Full(), new_tokens=0, question_seen=seen, reference=ids[0, 108:112]
        )[0]
        assert found.log_probability == pytest.approx(expected, abs=1e-4)
        assert found.text == ""


def test_the_middle_of_the_context_goes() -> None:
    long = Prompt(torch.arange(100), torch.arange(100, 110))
    assert long.cut_in_the_middle(110) is long
    cut = long.cut_in_the_middle(31)
    assert cut.context.tolist() == [*range(10), *range(89, 100)]
    assert torch.equal(cut.question, long.question)
    with pytest.raises(ValueError, match="question of 10 tokens"):
        long.cut_in_the_middle(10)


def test_what_a_reply_costs(tiny, ids, characters, monkeypatch) -> None:
    """Bytes with the memory's own state, of the whole batch; the clock's seconds, shared by the prompts."""
    prompts = [prompt(ids, 130), prompt(ids[:, 20:], 75)]
    stats = read(tiny, [each.context for each in prompts], NAMMPolicy(MEMORY)).stats
    clock = iter([100.0, 106.0])
    monkeypatch.setattr(replies.time, "perf_counter", lambda: next(clock))
    found = reply(tiny, characters, prompts, NAMMPolicy(MEMORY), new_tokens=2)
    assert [each.seconds for each in found] == [3.0, 3.0]
    assert [each.held_fraction for each in found] == [stats.held_bytes / stats.full_bytes] * 2
    assert stats.held_bytes > stats.kv_bytes


def test_special_tokens_are_no_text(reader) -> None:
    class Ended:
        pad_token_id = eos_token_id = 0

        def decode(self, ids: torch.Tensor, skip_special_tokens: bool) -> str:
            return "said" + "<end>" * (not skip_special_tokens)

    asked = Prompt(torch.arange(97, 120), torch.arange(97, 100))
    assert reply(reader, Ended(), [asked], Full(), new_tokens=2)[0].text == "said"  # type: ignore[arg-type]
