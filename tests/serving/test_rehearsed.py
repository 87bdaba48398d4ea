"""Documents that the model repeats before anything of them is forgotten."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from served import KEPT, Address, tokens, wait_until

from namm import NAMM, MemoryCache, NAMMConfig
from namm.policies import H2O, NAMMPolicy
from namm.serving.app import create_app
from namm.serving.documents import Document, Documents
from namm.serving.jobs import Read
from namm.serving.settings import Settings
from namm.tasks.encode import to_repeat

DISTILLED = NAMM(
    NAMMConfig(hidden=8, update_interval=16, window=8, hop=4, birth=True, key_value=True, influence=(0.7, -3.0))
)
POLICY = NAMMPolicy(DISTILLED, kept=0.5)
REHEARSED = replace(POLICY, rehearsed=True)
INSTRUCTION = tokens(5, 77)[0]
TEXT = "To be, or not to be, that is the question: whether 'tis nobler in the mind. "


@torch.inference_mode()
def rehearsed(model: Any, ids: torch.Tensor, instruction: torch.Tensor, bits: int | None = None) -> MemoryCache:
    """What a single run remembers."""
    cache = MemoryCache(model, REHEARSED, bits=bits)
    cache.rehearse(ids, instruction)
    return cache


def held_of(cache: MemoryCache, count: int) -> list[int]:
    """How many heads hold each token."""
    found = torch.zeros(count, dtype=torch.long)
    for layer in cache.positions():
        for positions in layer[0]:
            found[positions.long()] += 1
    return found.tolist()


@pytest.fixture
def server(serve) -> Address:
    return serve(POLICY)


def test_a_document_is_rehearsed_where_it_is_asked_for(server: Address) -> None:
    plain, repeated = server.read(TEXT, raw=True), server.read(TEXT, raw=True, rehearse=True)
    cards = [server.call("GET", f"/v1/documents/{document}").json() for document in (plain, repeated)]
    assert plain != repeated and [card["rehearsed"] for card in cards] == [False, True]
    ids = torch.tensor([server.tokenizer(TEXT)["input_ids"]])
    single = rehearsed(server.model, ids, to_repeat(server.tokenizer))
    held = [server.call("GET", f"/v1/documents/{document}/tokens").json()["held"] for document in (plain, repeated)]
    assert held[1] == held_of(single, ids.shape[1]) != held[0]
    asked = {"model": "tiny", "prompt": "Why?", "max_tokens": 12, "temperature": 0, "document": repeated}
    answer = server.call("POST", "/v1/completions", json=asked).json()
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == ids.shape[1]
    with torch.inference_mode():
        token, said = torch.tensor([server.tokenizer("Why?")["input_ids"]]), []
        while len(said) < 12:
            logits = server.model(token, past_key_values=single).logits[0, -1]
            said.append(int(logits.argmax()))
            token = torch.tensor([said[-1:]])
    assert answer["choices"][0]["text"] == server.tokenizer.decode(said)


def test_a_server_rehearses_where_it_is_told_to(serve) -> None:
    server = serve(POLICY, rehearse=True)
    documents = [server.read(TEXT, **more) for more in ({}, {"rehearse": None}, {"rehearse": False})]
    listed = {card["id"]: card["rehearsed"] for card in server.call("GET", "/v1/documents").json()["data"]}
    assert [listed[document] for document in documents] == [True, True, False]


def test_it_is_saved_with_the_document(serve, tmp_path: Path) -> None:
    first = serve(POLICY, folder=tmp_path / "kept")
    document = first.read(TEXT, raw=True, rehearse=True)
    asked = {"model": "tiny", "prompt": "Why?", "max_tokens": 40, "temperature": 0, "document": document}
    answer = first.call("POST", "/v1/completions", json=asked).json()["choices"]
    card = first.call("GET", f"/v1/documents/{document}").json()
    first.engine.close()
    second = serve(KEPT, folder=tmp_path / "kept")  # whose own policy knows of no rehearsal
    assert second.call("GET", f"/v1/documents/{document}").json() == card and card["rehearsed"]
    assert second.call("POST", "/v1/completions", json=asked).json()["choices"] == answer


def test_documents_of_before_were_not_rehearsed() -> None:
    notes = {"id": "doc", "name": "", "created": 1, "tokens": 2, "chat": False}
    notes |= {"undecided": 0, "kept_fraction": 0.5, "bytes": 9}
    assert not Document(**json.loads(json.dumps(notes))).rehearsed


@pytest.mark.parametrize("policy", [KEPT, H2O(0.4, 16)])
def test_what_a_policy_does_not_look_at_is_refused(serve, loaded, tmp_path: Path, policy: Any) -> None:
    server = serve(policy)
    answer = server.call("POST", "/v1/documents", json={"text": TEXT, "rehearse": True})
    assert answer.status_code == 409 and answer.json()["error"]["param"] == "rehearse"
    documents = Documents(tmp_path / "own", *loaded)
    with pytest.raises(ValueError, match="does not look at a rehearsal"):
        create_app(*loaded, policy, documents, Settings(rehearse=True), name="tiny")
    documents.close()


def test_a_repetition_needs_positions_too(server: Address) -> None:
    answer = server.call("POST", "/v1/documents", json={"text": "y" * 4050, "rehearse": True})
    assert answer.status_code == 413 and "of a repetition" in answer.json()["error"]["message"]


@pytest.mark.parametrize("bits", [None, 4])
def test_it_never_holds_more_than_was_reserved(start, monkeypatch: pytest.MonkeyPatch, bits: int | None) -> None:
    served = start(POLICY, bits)
    scheduler = served.engine.scheduler
    seen = served.held_and_reserved(monkeypatch)
    for length in (3, 16, 40, 150):
        ids = tokens(length, length)
        read = served.read(ids, instruction=INSTRUCTION).end()
        assert isinstance(read, Read) and read.document.rehearsed
        cache = scheduler.memory.documents[read.document.id].cache
        assert held_of(cache, length) == held_of(rehearsed(served.model, ids, INSTRUCTION, bits), length)
        for new in (4, 30):
            served.said(served.generate(tokens(9, 1), new, document=read.document.id))
    assert len(seen) > 50
    assert not [pair for pair in seen if pair[0] > pair[1]]
    assert max(held / reserved for held, reserved in seen) > 0.5, "it is no wild guess"


def test_others_go_on_between_its_blocks(start, monkeypatch: pytest.MonkeyPatch) -> None:
    served = start(POLICY)
    scheduler, read, parts = served.engine.scheduler, served.engine.scheduler._read, []

    def watched(job: Any) -> int:
        parts.append((read(job), len(other.job.said), job.read))
        return parts[-1][0]

    other = served.generate(tokens(9, 1), 3000)
    wait_until(lambda: scheduler.answering)
    monkeypatch.setattr(scheduler, "_read", watched)
    assert isinstance(served.read(tokens(40, 2), instruction=INSTRUCTION).end(), Read)
    served.engine.cancel(other.job)
    # blocks of 16, 16 and 8, and behind the instruction each of them again, with 8 tokens of the one before
    assert [part[0] for part in parts] == [16, 5 + 16, 16, 5 + 8 + 16, 8, 5 + 8 + 8]
    assert [part[2] for part in parts] == [0, 16, 16, 32, 32, 40]
    said = [part[1] for part in parts]
    assert all(before < after for before, after in zip(said, said[1:], strict=False))


def test_one_that_is_given_up_leaves_nothing(start) -> None:
    served = start(POLICY)
    reading = served.read(tokens(3000, 1), instruction=INSTRUCTION)
    wait_until(lambda: reading.job.read)
    served.engine.cancel(reading.job)
    assert served.held() == served.reserved() == 0 and not served.engine.documents.known
    assert reading.job.cache is reading.job.passes is None
