"""Who is admitted, who waits, who is refused, and what is free again when somebody goes."""

from __future__ import annotations

import random
import threading

import httpx2
import openai
import pytest
from served import KEPT, PATIENCE, alone, tokens, wait_until

from namm.policies import H2O, Full, NAMMPolicy
from namm.serving.errors import ServingError
from namm.serving.jobs import Read
from namm.serving.sizes import Sizes

LIMIT = 1024


@pytest.fixture(scope="module")
def sizes(loaded) -> Sizes:
    return Sizes.of(loaded[0], 24)


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("policy", [KEPT, Full(), H2O(0.4, 16), NAMMPolicy(KEPT.memory, budget=40)])
def test_nobody_ever_holds_more_than_was_reserved(start, monkeypatch: pytest.MonkeyPatch, policy, bits) -> None:
    """After every pass, of prompts and answers of several lengths, with and without a document before them."""
    served = start(policy, bits)
    seen = served.held_and_reserved(monkeypatch)
    document = served.document(tokens(70, 9))
    for length, new in ((3, 5), (40, 30), (9, 60), (150, 3)):
        for before in (None, document):
            served.said(served.generate(tokens(length, 1), new, document=before))
    assert len(seen) > 100
    assert not [pair for pair in seen if pair[0] > pair[1]]
    assert max(held / reserved for held, reserved in seen) > 0.5, "it is no wild guess"


def test_what_does_not_fit_waits(start, sizes: Sizes) -> None:
    one = sizes.most(KEPT, None, 100)
    served = start(memory=int(2.5 * one))
    answers = [served.generate(tokens(20, n), 80) for n in range(4)]
    wait_until(lambda: len(served.engine.scheduler.answering) == 2)
    assert len(served.engine.scheduler.memory.jobs) == 2 and len(served.engine.scheduler.queue) == 2
    assert served.reserved() == 2 * one
    for n, answer in enumerate(answers):
        assert served.said(answer) == alone(served.model, tokens(20, n), 80)
    assert served.reserved() == served.held() == 0


def test_what_can_never_fit_is_refused_at_once(start, sizes: Sizes) -> None:
    served = start(memory=sizes.most(KEPT, None, 100))
    error = served.refusal(served.generate(tokens(80, 0), 30))
    assert error.status == 413 and "may come to hold" in error.message
    assert served.said(served.generate(tokens(80, 0), 20))


def test_a_full_queue_refuses(start) -> None:
    served = start(batch=1, queue=2)
    first = served.generate(tokens(9, 0), 3000)
    wait_until(lambda: served.engine.scheduler.answering)
    waiting = [served.generate(tokens(9, n), 2) for n in (1, 2)]
    with pytest.raises(ServingError, match="2 requests are waiting") as caught:
        served.generate(tokens(9, 3), 2)
    assert caught.value.status == 429 and caught.value.retry_after == 3
    served.engine.cancel(first.job)
    for n, answer in zip((1, 2), waiting, strict=True):
        assert served.said(answer) == alone(served.model, tokens(9, n), 2)


def test_who_goes_holds_nothing(start) -> None:
    served = start(batch=3)
    document = served.document(tokens(60, 9))
    before = served.held()
    jobs = [served.generate(tokens(9, n), 3000, document=document).job for n in range(3)]
    jobs.append(served.read(tokens(3000, 1)).job)
    wait_until(lambda: len(served.engine.scheduler.answering) == 3 and served.engine.scheduler.queue)
    assert served.held() > before
    for job in jobs:
        served.engine.cancel(job)
    assert served.held() == served.reserved() == before
    assert not list(served.engine.scheduler.jobs())


def test_a_reading_that_is_given_up_leaves_nothing(start) -> None:
    served = start()
    reading = served.read(tokens(3000, 1))
    wait_until(lambda: reading.job.read)
    served.engine.cancel(reading.job)
    assert served.held() == 0 and not served.engine.documents.known


def test_documents_leave_memory_and_come_back(start, sizes: Sizes) -> None:
    """The least recently used goes; it is loaded where it is asked again."""
    one = sizes.most(KEPT, None, 150)
    served = start(memory=int(1.8 * one))
    texts = [tokens(150, n) for n in range(4)]
    documents = [served.document(text) for text in texts]
    held = served.engine.scheduler.memory.documents
    assert documents[0] not in held and documents[-1] in held
    for n in (0, 2, 0, 1):
        found = served.said(served.generate(tokens(5, 7), 12, document=documents[n]))
        assert found == alone(served.model, tokens(5, 7), 12, text=texts[n]), n
        assert documents[n] in held
        now = served.snapshot()
        assert now.held <= now.reserved <= int(1.8 * one)
    assert list(served.engine.documents.known) == documents


def test_many_may_wait_for_one_document(start) -> None:
    served = start()
    text = tokens(100, 1)
    document = served.document(text)
    served.engine.ask(lambda: served.engine.scheduler.memory.documents.clear()).result()
    answers = [served.generate(tokens(5, n), 10, document=document) for n in range(5)]
    for n, answer in enumerate(answers):
        assert served.said(answer) == alone(served.model, tokens(5, n), 10, text=text)
    assert served.engine.scheduler.memory.documents[document].users == 0


def test_a_document_may_be_deleted_while_it_is_asked(start) -> None:
    served = start()
    text = tokens(100, 1)
    document = served.document(text)
    answer = served.generate(tokens(5, 0), 100, document=document)
    wait_until(lambda: served.engine.scheduler.answering)
    served.engine.ask(lambda: served.engine.scheduler.delete(document)).result()
    assert served.refusal(served.generate(tokens(5, 0), 3, document=document)).status == 404
    assert served.said(answer) == alone(served.model, tokens(5, 0), 100, text=text)
    assert served.held() == served.reserved() == 0


def test_a_damaged_document_is_an_error(start, caplog: pytest.LogCaptureFixture) -> None:
    served = start()
    document = served.document(tokens(60, 1))
    served.engine.ask(lambda: served.engine.scheduler.memory.documents.clear()).result()
    (file,) = (served.engine.documents.folder / document).iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    error = served.refusal(served.generate(tokens(5, 0), 3, document=document))
    assert error.status == 500 and str(file) not in error.message
    wait_until(lambda: str(file) in caplog.text)  # the engine's thread writes it after it has told the client
    assert str(file) in caplog.text
    assert served.held() == served.reserved() == 0


def test_a_disk_that_is_full_is_an_error(start, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given) -> None:
        raise OSError(28, "No space left on device")

    served = start()
    monkeypatch.setattr("namm.cache.saved.write_atomically", full)
    assert served.refusal(served.read(tokens(60, 1))).status == 500
    assert served.held() == served.reserved() == 0 and not served.engine.documents.known
    monkeypatch.undo()
    assert isinstance(served.read(tokens(60, 1)).end(), Read)


def test_under_pressure_nothing_is_wrong_and_nothing_is_left(start, sizes: Sizes) -> None:
    """Ten times what fits, about documents that do not all fit either, a third of it given up on the way."""
    one = sizes.most(KEPT, None, 110)
    served = start(memory=3 * one, batch=8)
    texts = [tokens(80, n) for n in range(4)]
    documents = [served.document(text) for text in texts]
    chance, asked = random.Random(0), []
    for n in range(36):
        about = chance.choice([None, *range(4)])
        ids, new = tokens(chance.randint(1, 40), n), chance.randint(1, 25)
        answer = served.generate(ids, new, document=None if about is None else documents[about])
        asked.append((answer, ids, new, None if about is None else texts[about]))
        if n % 3 == 0:
            given_up = asked.pop(chance.randrange(len(asked)))
            served.engine.cancel(given_up[0].job)
        now = served.snapshot()
        assert now.held <= now.reserved <= 3 * one
    for answer, ids, new, text in asked:
        assert served.said(answer) == alone(served.model, ids, new, text=text)
    wait_until(lambda: not served.engine.busy)
    held = served.engine.scheduler.memory.documents
    assert served.held() == served.reserved() == sum(own.bytes for own in held.values())
    assert not any(own.users for own in held.values())
    served.engine.ask(lambda: [served.engine.scheduler.delete(document) for document in documents]).result()
    assert served.held() == served.reserved() == 0


def test_what_nobody_waits_for_any_more_is_not_done(start) -> None:
    engine, turn, done = start().engine, threading.Event(), []
    engine.ask(turn.wait)
    late = engine.ask(lambda: done.append(1))
    assert late.cancel(), "as metrics do when a turn takes too long"
    turn.set()
    wait_until(lambda: not engine.alive or engine.ask(lambda: 3).result(PATIENCE) == 3)
    assert engine.alive and not done


def test_a_client_that_goes_frees_what_it_held(serve) -> None:
    server = serve()
    asked = {"model": "tiny", "prompt": "a", "max_tokens": 3000, "temperature": 0}
    with pytest.raises(httpx2.TimeoutException):
        httpx2.post(f"{server.url}/v1/completions", json=asked, timeout=0.5)
    wait_until(lambda: not server.engine.scheduler.memory.jobs)
    stream = server.client().completions.create(**asked, stream=True)
    assert next(iter(stream)).choices and server.engine.scheduler.memory.jobs
    stream.close()
    wait_until(lambda: not server.engine.scheduler.memory.jobs)
    assert 'namm_requests_total{outcome="cancelled"} 2.0' in server.call("GET", "/metrics").text


def test_keys(serve) -> None:
    server = serve(keys=("secret", "other"))
    for key in ("secret", "other"):
        assert server.client(key).models.list().data
    for wrong in ("wrong", "secret2", "secre", "s\u00e9cret".encode().decode("latin-1")):
        assert (
            server.call(
                "GET", "/v1/models", headers=[(b"Authorization", f"Bearer {wrong}".encode("latin-1"))]
            ).status_code
            == 401
        )
    with pytest.raises(openai.AuthenticationError, match="a valid API key is needed"):
        server.client("wrong").models.list()
    for path in ("/v1/models", "/v1/documents", "/metrics", "/openapi.json", "/nowhere"):
        assert server.call("GET", path).status_code == 401
    assert server.call("GET", "/health").status_code == server.call("GET", "/").status_code == 200


def test_a_large_body_is_refused(serve) -> None:
    server = serve(body=LIMIT)
    asked = {"model": "tiny", "max_tokens": 1}
    assert server.call("POST", "/v1/completions", json=asked | {"prompt": "a" * (LIMIT - 100)}).status_code == 200
    answer = server.call("POST", "/v1/completions", json=asked | {"prompt": "a" * LIMIT})
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"
    in_parts = server.call("POST", "/v1/completions", content=(b"a" * 100 for _ in range(20)))
    assert in_parts.status_code == 413
    assert server.call("POST", "/v1/completions", content=b"a" * 50 * LIMIT).status_code == 413


def test_http_says_429_and_413(serve) -> None:
    server = serve(batch=1, queue=1)
    asked = {"model": "tiny", "prompt": "a", "temperature": 0}
    threads = []
    for waiting in (0, 1):
        body = asked | {"max_tokens": 1500 if not waiting else 1}
        threads.append(threading.Thread(target=server.call, args=("POST", "/v1/completions"), kwargs={"json": body}))
        threads[-1].start()
        wait_until(lambda: server.engine.scheduler.memory.jobs)
        wait_until(lambda waiting=waiting: len(server.engine.scheduler.queue) >= waiting)
    answer = server.call("POST", "/v1/completions", json=asked)
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) > 0
    with pytest.raises(openai.RateLimitError):
        server.client().completions.create(**asked)
    server.engine.ask(server.engine.scheduler.stop).result()
    for thread in threads:
        thread.join()
    assert server.call("POST", "/v1/completions", json=asked | {"max_tokens": 4096}).status_code == 413


def test_a_server_that_drains_takes_nothing_new(serve) -> None:
    server = serve()
    running = server.client().completions.create(model="tiny", prompt="a", max_tokens=300, temperature=0, stream=True)
    next(iter(running))
    thread = threading.Thread(target=server.engine.drain, args=(60,))
    thread.start()
    wait_until(lambda: server.engine.draining)
    assert server.call("POST", "/v1/completions", json={"model": "tiny", "prompt": "a"}).status_code == 503
    assert server.call("GET", "/health").status_code == 503
    assert sum(1 for part in running if part.choices[0].finish_reason) == 1
    thread.join()
    assert not server.engine.busy
