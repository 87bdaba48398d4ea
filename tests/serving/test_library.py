"""Documents: read, listed, asked, shown, deleted, and still there after a restart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from served import KEPT, Address, Served, alone, tokens, wait_until

from namm import MemoryCache
from namm.policies import Full
from namm.serving.documents import ID, Documents
from namm.serving.shared import SharedDocuments

TEXT = "To be, or not to be, that is the question: whether 'tis nobler in the m\u00efnd. " * 3
OTHER = "x" * 90


@pytest.fixture
def server(serve) -> Address:
    return serve()


def test_a_document_comes_and_goes(server: Address) -> None:
    first, second = server.read(TEXT, name="Hamlet"), server.read(OTHER, raw=True)
    assert ID.fullmatch(first) and first != second
    listed = server.call("GET", "/v1/documents").json()["data"]
    assert [(each["id"], each["name"], each["chat"]) for each in listed] == [
        (first, "Hamlet", True),
        (second, "", False),
    ]
    one = server.call("GET", f"/v1/documents/{first}").json()
    assert one == listed[0] and one["tokens"] == len(("<user>" + TEXT).encode())
    assert abs(one["kept_fraction"] - 0.5) < 0.02 and one["bytes"] > 1000
    assert server.call("DELETE", f"/v1/documents/{first}").json() == {
        "id": first,
        "object": "document",
        "deleted": True,
    }
    assert server.call("GET", f"/v1/documents/{first}").status_code == 404
    assert server.call("DELETE", f"/v1/documents/{first}").status_code == 404
    folder = server.app.state.documents.folder
    assert [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")] == [second]


def test_what_was_kept_is_shown(server: Address) -> None:
    document = server.read(TEXT, raw=True)
    shown = server.call("GET", f"/v1/documents/{document}/tokens").json()
    assert "".join(shown["tokens"]) == TEXT and shown["heads"] == 4
    cache = server.engine.scheduler.memory.documents[document].cache
    assert cache is not None
    held = torch.zeros(len(TEXT.encode()), dtype=torch.long)
    for layer in cache.positions():
        for positions in layer[0]:
            held[positions.long()] += 1
    assert shown["held"] == held.tolist() and 0 in shown["held"] and 4 in shown["held"]


@pytest.mark.parametrize(
    "path", ["../secret", "..%2fsecret", "%2e%2e/secret", "....//secret", "/etc/passwd", "doc-" + "0" * 32, "doc-"]
)
def test_no_path_of_a_request_meets_the_disk(server: Address, path: str) -> None:
    folder = server.app.state.documents.folder
    secret = folder.parent / "secret"
    MemoryCache.save(_read(server), secret, server.tokenizer, tokens(9, 1))
    for method, rest in (("GET", ""), ("GET", "/tokens"), ("DELETE", "")):
        assert server.call(method, f"/v1/documents/{path}{rest}").status_code in (404, 405), (method, path)
    asked = {"model": "tiny", "prompt": "a", "document": path}
    assert server.call("POST", "/v1/completions", json=asked).status_code in (400, 404)
    answer = server.call("POST", "/v1/documents", json={"text": OTHER, "name": f"../{path}\x00"})
    assert answer.status_code == 201 and ID.fullmatch(answer.json()["id"])
    assert list(secret.iterdir()) and {entry.name for entry in folder.parent.iterdir()} == {folder.name, "secret"}


@torch.inference_mode()
def _read(server: Address) -> MemoryCache:
    cache = MemoryCache(server.model, Full())
    server.model(tokens(9, 1), past_key_values=cache)
    return cache


def test_documents_are_there_after_a_restart(serve, tmp_path: Path) -> None:
    first = serve(folder=tmp_path / "kept")
    document, other = first.read(TEXT, raw=True, name="Hamlet"), first.read(OTHER, raw=True)
    asked = {"model": "tiny", "prompt": "Why?", "max_tokens": 20, "temperature": 0, "document": document}
    answer = first.call("POST", "/v1/completions", json=asked).json()["choices"]
    card = first.call("GET", f"/v1/documents/{document}").json()
    first.engine.close()
    second = serve(folder=tmp_path / "kept", policy=Full())
    assert second.call("GET", f"/v1/documents/{document}").json() == card
    assert not second.engine.scheduler.memory.documents, "it is loaded when it is asked"
    assert second.call("POST", "/v1/completions", json=asked).json()["choices"] == answer
    assert list(second.engine.scheduler.memory.documents) == [document]
    assert [each["id"] for each in second.call("GET", "/v1/documents").json()["data"]] == sorted(
        [document, other], key=lambda id: (second.engine.documents.known[id].created, id)
    )


def test_a_folder_belongs_to_one_server(start, loaded, tmp_path: Path) -> None:
    start(folder=tmp_path / "own")
    with pytest.raises(ValueError, match="another run is at work"):
        Documents(tmp_path / "own", *loaded)


def test_two_servers_delete_one_document(loaded, tmp_path: Path, start) -> None:
    served: Served = start(folder=tmp_path / "own")
    document = served.document(tokens(60, 1))
    served.engine.close()
    one, other = (SharedDocuments(tmp_path / "own", *loaded) for _ in range(2))
    assert one.find(document) and other.find(document)
    one.delete(document)
    other.delete(document)
    assert one.every() == other.every() == [] and not (tmp_path / "own" / document).exists()
    one.close()
    other.close()


def test_what_is_not_its_own_is_left_alone(loaded, tmp_path: Path, start) -> None:
    served: Served = start(folder=tmp_path / "own")
    document = served.document(tokens(60, 1))
    served.engine.close()
    folder, (model, tokenizer) = tmp_path / "own", loaded
    half, damaged, foreign = (folder / f"doc-{digit * 32}" for digit in "012")
    for entry in (half, damaged, foreign):
        entry.mkdir()
    (half / "cache.safetensors.partial").write_bytes(b"half")
    (damaged / "cache.safetensors").write_bytes(b"nonsense")
    (foreign / "cache.safetensors").write_bytes((folder / document / "cache.safetensors").read_bytes())
    (folder / "notes.txt").write_text("mine")
    found = Documents(folder, model, tokenizer)
    assert list(found.known) == [document] and found.passed_over == 2
    assert not half.exists() and damaged.exists() and (folder / "notes.txt").exists()
    found.close()
    with torch.no_grad():
        weight = next(model.parameters())
        before = weight[0, 0].clone()
        weight[0, 0] += 1
        other = Documents(folder, model, tokenizer)
        weight[0, 0] = before
    assert not other.known and other.passed_over == 3
    other.close()


def test_too_many_and_too_long(serve) -> None:
    server = serve(documents=1, tokens=200)
    assert server.call("POST", "/v1/documents", json={"text": "y" * 200}).status_code == 413
    server.read(OTHER)
    assert server.call("POST", "/v1/documents", json={"text": OTHER}).status_code == 409
    blank: Any = server.call("POST", "/v1/documents", json={"text": " \n"})
    assert blank.status_code in (400, 409)


def test_blank_texts(server: Address) -> None:
    answer = server.call("POST", "/v1/documents", json={"text": " \n"})
    assert answer.status_code == 400 and "empty" in answer.json()["error"]["message"]


def test_a_reader_that_goes_leaves_no_document(server: Address) -> None:
    import httpx2

    with pytest.raises(httpx2.TimeoutException):
        httpx2.post(f"{server.url}/v1/documents", json={"text": "word " * 800}, timeout=0.1)
    wait_until(lambda: not server.engine.busy)
    wait_until(lambda: not server.engine.documents.known)
    assert not [entry for entry in server.engine.documents.folder.iterdir() if ID.fullmatch(entry.name)]


def test_the_file_says_what_it_is(start) -> None:
    from safetensors import safe_open

    served: Served = start(KEPT)
    ids = tokens(60, 1)
    document = served.document(ids)
    with safe_open(served.engine.documents.folder / document / "cache.safetensors", "pt") as file:
        notes = json.loads(file.metadata()["namm"])["notes"]
        assert torch.equal(file.get_tensor("ids").long(), ids)
    assert notes["id"] == document and notes["tokens"] == 60
    loaded = MemoryCache.load(served.model, served.engine.documents.folder / document, served.tokenizer)
    assert loaded.stats().seen == (60,)
    assert served.said(served.generate(tokens(3, 2), 5, document=document)) == alone(
        served.model, tokens(3, 2), 5, text=ids
    )
