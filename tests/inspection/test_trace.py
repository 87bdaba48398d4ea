from __future__ import annotations

import numpy as np
import pytest
from inspected import TEXT
from tokenizing import bytewise

from namm import MemoryCache, inspect
from namm.inspection.trace import _read
from namm.policies import H2O, Full, NAMMPolicy, Streaming


def cached(model, tokenizer, text: str, policy, settle: bool) -> np.ndarray:
    """What a cache holds after one call, found in another way."""
    ids = tokenizer(text, return_tensors="pt").input_ids
    cache = MemoryCache(model, policy)
    model(ids, past_key_values=cache)
    if settle:
        cache.settle()
    held = np.zeros((2, 2, ids.shape[1]), dtype=bool)
    for layer, rows in enumerate(cache.positions()):
        for head, positions in enumerate(rows[0]):
            held[layer, head, positions.numpy()] = True
    return held


@pytest.mark.parametrize("name", ["remembered", "by_rule"])
def test_it_is_what_the_cache_holds_after_every_update(name, loaded, memory, by_rule, remembered) -> None:
    found = {"remembered": remembered, "by_rule": by_rule}[name]
    policy = NAMMPolicy(memory, offset=-0.02) if name == "remembered" else H2O(0.5, 64)
    assert found.updates == (*range(64, found.tokens, 64), found.tokens)
    for update, end in enumerate(found.updates):
        text = bytes(TEXT.encode()[:end]).decode(errors="ignore")
        if len(text.encode()) == end:  # the cut was at no character's inside
            expected = cached(*loaded, text, policy, settle=end == found.tokens)
            assert (found.held(update)[..., :end] == expected).all()
            assert not found.held(update)[..., end:].any()
    assert found.kept().mean() == pytest.approx(found.stats.kept_fraction)
    assert found.kept_by_head().mean() == pytest.approx(found.stats.kept_fraction)
    assert 0 < found.stats.kept_fraction < 1


def test_a_token_stays_where_its_last_score_is_not_negative(remembered) -> None:
    judged = remembered.scores >= 0
    judged[..., -1] = True  # the newest always stays
    newest = np.array(remembered.updates) - 1  # and so it did at every update, until it was judged again
    others = np.setdiff1d(np.arange(remembered.tokens), newest)
    assert (remembered.held()[..., others] == judged[..., others]).all()
    assert remembered.spectrogram.shape == (remembered.tokens, 1, 17)
    assert (remembered.spectrogram >= 0).all() and remembered.spectrogram.max() > 0


def test_watching_changes_nothing(loaded, memory, remembered) -> None:
    expected = cached(*loaded, TEXT, NAMMPolicy(memory, offset=-0.02), settle=True)
    assert (remembered.held() == expected).all()


def test_rules_without_scores_have_none(by_rule) -> None:
    assert by_rule.scores is None and by_rule.spectrogram is None
    assert "score" not in next(iter(by_rule.rows()))


def test_the_full_cache_forgets_nothing(loaded) -> None:
    found = inspect(*loaded, TEXT, Full(), name="everything")
    assert found.name == "everything" and found.updates == (found.tokens,) and found.held().all()


def test_tokens_tile_the_text_without_overlap(remembered) -> None:
    starts, ends = remembered.spans.T
    assert (starts[1:] == ends[:-1]).all() and starts[0] == 0
    assert "".join(remembered.text[start:end] for start, end in remembered.spans) == TEXT
    assert remembered.tokens == len(TEXT.encode()) > len(TEXT), "letters of several tokens are whole in the first"


def test_at_most_so_many_tokens(loaded) -> None:
    calls: list[tuple[int, int]] = []
    found = inspect(
        *loaded, TEXT, Streaming(0.5, 64), tokens=100, progress=lambda done, total: calls.append((done, total))
    )
    assert found.tokens == 100 and found.text == TEXT[:100] and calls == [(64, 100), (100, 100)]


def test_a_text_too_short_to_be_judged_is_kept(loaded, memory) -> None:
    found = inspect(*loaded, "Hi", memory)
    assert found.held().all() and found.scores is None and len(list(found.rows())) == 2


def test_rows_go_into_a_table(remembered) -> None:
    rows = list(remembered.rows())
    assert [row["position"] for row in rows] == list(range(remembered.tokens))
    assert "".join(row["text"] for row in rows) == TEXT
    assert np.allclose([row["kept"] for row in rows], remembered.kept())
    assert set(rows[0]) == {"position", "text", "kept", "score"}


def test_a_notebook_shows_the_page(remembered) -> None:
    shown = remembered._repr_html_()
    assert shown.startswith('<iframe srcdoc="') and "<b>" not in shown.removeprefix("<iframe")


def test_what_can_not_be_inspected_is_refused(loaded, memory) -> None:
    model, tokenizer = loaded

    class Plain:
        def __call__(self, text: str, **options: object) -> None:
            raise NotImplementedError("no offsets")

    with pytest.raises(ValueError, match="empty"):
        inspect(model, tokenizer, "", memory)
    with pytest.raises(ValueError, match=r"Plain can't say where .* no offsets"):
        inspect(model, Plain(), TEXT, memory)


@pytest.mark.fault("A7", siblings="a chat template's text, which begins already")
@pytest.mark.parametrize("text", ["a cat", "<s>a cat"])
def test_what_begins_a_text_is_read_once_and_stands_nowhere(text) -> None:
    tokenizer = bytewise("<s> $A </s>")
    ids, spans = _read(tokenizer, text, None)
    assert tokenizer.convert_ids_to_tokens(ids[0]) == ["<s>", "a", "Ġcat"]
    assert [text[start:end] for start, end in spans[1:]] == ["a", " cat"]
    assert _read(tokenizer, text, 2)[0].shape == (1, 2) and len(_read(tokenizer, text, 2)[1]) == 2
    with pytest.raises(ValueError, match="empty"):
        _read(tokenizer, "", None)
