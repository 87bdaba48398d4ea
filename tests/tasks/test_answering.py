from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from namm.policies import H2O, Full, Policy, Streaming, top
from namm.policies.base import REHEARSED
from namm.support.tensors import Column
from namm.tasks import Sample
from namm.tasks.answering import answer_score, padding_token, read, tail_loss


def test_a_question_may_be_left_out(tiny, ids) -> None:
    whole, _ = read(tiny, [ids[0, :40]], Full()).score(ids[0, 40:45], ids[0, 45:50])
    later, _ = read(tiny, [ids[0, :45]], Full()).score(ids[0, :0], ids[0, 45:50])
    torch.testing.assert_close(whole, later, atol=1e-4, rtol=1e-4)
    one, _ = read(tiny, [ids[0, :45]], Full()).score(ids[0, :0], ids[0, 45:46])
    torch.testing.assert_close(one, later[:, :1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("policy", [Full(), H2O(budget=0.3, update_interval=16)])
def test_a_fork_is_asked_as_if_it_were_alone(tiny, ids, policy) -> None:
    reading, questions = read(tiny, [ids[0, :40]], policy), (ids[0, 40:45], ids[0, 60:70])
    for question in questions:
        found, _ = reading.fork().score(question, ids[0, 45:50])
        alone, _ = read(tiny, [ids[0, :40]], policy).score(question, ids[0, 45:50])
        assert torch.equal(found, alone)


@pytest.mark.fault("A10", siblings="the mean of no log-probabilities was NaN")
def test_no_answer_has_no_score(tiny, ids) -> None:
    with pytest.raises(ValueError, match="answer of no tokens"):
        read(tiny, [ids[0, :20]], Full()).score(ids[0, 20:22], ids[0, :0])
    with pytest.raises(ValueError, match="answer that is not blank"):
        Sample("context", "question", " \n")


def test_padding_moves_no_position(wild, ids) -> None:
    """In a model whose tokens tell places apart: a random one with small weights hardly does."""
    contexts, questions = [ids[0, :40], ids[0, 50:73]], [ids[0, 100:103], ids[0, 110:117]]
    together = read(wild, contexts, Full()).generate(questions, 8)
    for context, question, found in zip(contexts, questions, together, strict=True):
        assert torch.equal(found, read(wild, [context], Full()).generate([question], 8)[0])


def test_one_wrong_token_makes_an_answer_wrong(tiny, ids) -> None:
    best = read(tiny, [ids[0, :40]], Full()).generate([ids[0, 40:43]], 2)
    assert answer_score(tiny, ids[:, :40], ids[:, 40:43], best, Full()).correct
    for wrong in (torch.tensor([[1, 0]]), torch.tensor([[0, 1]])):
        assert not answer_score(tiny, ids[:, :40], ids[:, 40:43], (best + wrong) % 200, Full()).correct


def test_what_can_not_share_a_batch_is_refused(tiny, ids) -> None:
    contexts = [ids[0, :20], ids[0, :10]]
    with pytest.raises(ValueError, match="one length"):
        read(tiny, contexts, Full()).score(ids[0, 20:22], ids[0, 22:24])


def test_padding_is_what_the_tokenizer_has(characters) -> None:
    class Without:
        pad_token_id = eos_token_id = None

    assert padding_token(characters) == characters.eos_token_id == 0
    assert padding_token(Without()) == 0  # type: ignore[arg-type]


def test_the_full_cache_loses_what_the_plain_model_loses(tiny, ids) -> None:
    with torch.no_grad():
        logits = tiny(ids).logits[0]
    for tail in (1, 50):
        expected = F.cross_entropy(logits[-tail - 1 : -1], ids[0, -tail:])
        assert tail_loss(tiny, ids, Full(), tail).loss == pytest.approx(float(expected), abs=1e-4)


def test_an_answer_is_scored_token_by_token(tiny, ids) -> None:
    context, question, answer = ids[:, :200], ids[:, 200:204], ids[:, 204:207]
    with torch.no_grad():
        logits = tiny(ids[:, :207]).logits[0, 203:206].log_softmax(-1)
    expected = float(logits.gather(1, answer[0][:, None]).mean())
    found = answer_score(tiny, context, question, answer, Full())
    assert found.log_probability == pytest.approx(expected, abs=1e-4)
    assert not found.correct and found.kept_fraction == 1.0
    best = []
    for _ in range(2):
        with torch.no_grad():
            best.append(
                int(tiny(torch.cat([ids[:, :204], torch.tensor([best], dtype=torch.long)], 1)).logits[0, -1].argmax())
            )
    assert answer_score(tiny, context, question, torch.tensor([best]), Full()).correct


@pytest.mark.parametrize("tail", [0, 300, 400])
def test_a_tail_that_does_not_fit_is_refused(tiny, ids, tail: int) -> None:
    with pytest.raises(ValueError, match="300 tokens"):
        tail_loss(tiny, ids, H2O(), tail)


class Rehearsed(Policy):
    """The best quarter of what was rehearsed."""

    update_interval = 32
    state = {REHEARSED: Column()}

    def keep(self, head):
        assert head.columns[REHEARSED][-8:].all() or not head.columns[REHEARSED].any()
        return top(head.columns[REHEARSED], head.seen // 4, recent=1)


def test_a_rehearsal_is_for_those_who_look_at_it(wild, ids) -> None:
    instruction, contexts = ids[0, 290:295], [ids[0, :40], ids[0, 40:110]]
    together = read(wild, contexts, Rehearsed(), rehearse=instruction)
    assert together.stats.kept_fractions == [10 / 40, 17 / 70]
    for row, context in enumerate(contexts):
        alone = read(wild, [context], Rehearsed(), rehearse=instruction)
        torch.testing.assert_close(together.logits[row], alone.logits[0], atol=1e-4, rtol=1e-3)
        without = read(wild, [context], Rehearsed())
        assert not torch.allclose(
            alone.score(ids[0, :3], ids[0, 3:9])[0], without.score(ids[0, :3], ids[0, 3:9])[0], atol=1e-3
        )
        blind, plain = (read(wild, [context], Streaming(0.25, 1), rehearse=r) for r in (instruction, None))
        assert torch.equal(blind.logits, plain.logits) and blind.stats == plain.stats
