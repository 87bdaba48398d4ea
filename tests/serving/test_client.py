"""OpenAI's own client is served."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from served import Address

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
TEXT = "To be, or not to be, that is the question. " * 6


@pytest.fixture
def server(serve) -> Address:
    return serve()


def test_models(server: Address) -> None:
    client = server.client()
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").object == "model"
    with pytest.raises(openai.NotFoundError, match="this is 'tiny'"):
        client.models.retrieve("other")


def test_a_completion(server: Address) -> None:
    found = server.client().completions.create(model="tiny", prompt="To be", max_tokens=30, temperature=0)
    assert found.choices[0].text == server.alone("To be", 30)
    assert found.usage.prompt_tokens == 5 and found.usage.total_tokens == 5 + found.usage.completion_tokens
    by_ids = server.client().completions.create(model="tiny", prompt=list(b"#5"), max_tokens=3, temperature=0)
    assert by_ids.usage.prompt_tokens == 2


def test_a_chat(server: Address) -> None:
    options = {"model": "tiny", "max_completion_tokens": 20, "temperature": 0}
    found = server.client().chat.completions.create(messages=CHAT, **options)
    assert found.choices[0].message.content == server.alone("<system>Be brief.</><user>Why?</><assistant>", 20)
    parts = [CHAT[0], {"role": "user", "content": [{"type": "text", "text": "Why?"}]}]
    again = server.client().chat.completions.create(messages=parts, **options)
    assert again.choices == found.choices


def test_a_stream_says_the_same(server: Address) -> None:
    options = {"model": "tiny", "messages": CHAT, "max_tokens": 40, "temperature": 0}
    whole = server.client().chat.completions.create(**options)
    parts = list(
        server.client().chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    )
    assert parts[-1].choices == [] and parts[-1].usage == whole.usage
    assert parts[0].choices[0].delta.role == "assistant" and len(parts) > 4
    assert "".join(part.choices[0].delta.content or "" for part in parts[:-1]) == whole.choices[0].message.content
    assert [part.choices[0].finish_reason for part in parts[:-1]] == [None] * (len(parts) - 2) + ["length"]
    plain = list(server.client().completions.create(model="tiny", prompt="a", max_tokens=9, temperature=0, stream=True))
    assert "".join(part.choices[0].text for part in plain) == server.alone("a", 9)


def test_a_stream_ends_as_events_do(server: Address) -> None:
    asked = {"model": "tiny", "prompt": "a", "max_tokens": 2, "stream": True}
    answer = server.call("POST", "/v1/completions", json=asked)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("\n\ndata: [DONE]\n\n") and answer.text.startswith("data: {")


def test_a_seed_and_a_stop(server: Address) -> None:
    def ask(**options) -> str:
        return (
            server.client().completions.create(model="tiny", prompt="To be", max_tokens=40, **options).choices[0].text
        )

    assert ask(seed=3) == ask(seed=3) != ask(seed=4)
    assert ask(seed=3, top_p=0.0) == ask(temperature=0)
    said = ask(temperature=0)
    stop = said[len(said) // 2 :][:3]
    assert ask(temperature=0, stop=[stop, "never there"]) == said[: said.index(stop)]
    stopped = server.client().completions.create(model="tiny", prompt="To be", max_tokens=40, temperature=0, stop=stop)
    assert stopped.choices[0].finish_reason == "stop"


def test_a_document_is_asked(server: Address) -> None:
    raw, chat = server.read(TEXT, raw=True, name="Hamlet"), server.read(TEXT)
    client = server.client()
    found = client.completions.create(
        model="tiny", prompt="Why?", max_tokens=20, temperature=0, extra_body={"document": raw}
    )
    assert found.choices[0].text == server.alone("Why?", 20, TEXT)
    assert found.usage.prompt_tokens_details.cached_tokens == len(TEXT)
    asked = [{"role": "user", "content": "Why?"}]
    turn = client.chat.completions.create(
        model="tiny", messages=asked, max_tokens=20, temperature=0, extra_body={"document": chat}
    )
    after = "\n\nQuestion: Why?</><assistant>"
    assert turn.choices[0].message.content == server.alone(after, 20, "<user>" + TEXT)
    for wrong, messages in ((raw, asked), (chat, CHAT), ("doc-" + "0" * 32, asked)):
        with pytest.raises((openai.BadRequestError, openai.NotFoundError)):
            client.chat.completions.create(model="tiny", messages=messages, extra_body={"document": wrong})


def test_many_at_once(server: Address) -> None:
    document = server.read(TEXT, raw=True)
    prompts = [f"{'word ' * (n % 7)}{n}" for n in range(8)]

    def ask(n: int) -> str:
        more = {"document": document} if n % 2 else {}
        asked = {"model": "tiny", "prompt": prompts[n], "max_tokens": 5 + 2 * n, "temperature": 0, "extra_body": more}
        if n % 3:
            return server.client().completions.create(**asked).choices[0].text
        return "".join(part.choices[0].text for part in server.client().completions.create(**asked, stream=True))

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    wanted = [server.alone(prompts[n], 5 + 2 * n, TEXT if n % 2 else None) for n in range(8)]
    assert answers == wanted


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"n": 2}, "n"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"presence_penalty": 1.0}, "presence_penalty"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [999]}, "prompt"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"nonsense": 1}, "nonsense"),
        ({"document": "../../etc/passwd"}, "document"),
    ],
)
def test_what_is_not_served_is_said_to_be(server: Address, wrong: dict, named: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.client().completions.create(**{"model": "tiny", "prompt": "a"} | {"extra_body": wrong})
    assert caught.value.type == "invalid_request_error"
    assert str(caught.value.body["message"]).startswith(named) or named in str(caught.value.param)


def test_other_errors(server: Address) -> None:
    client = server.client()
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        client.completions.create(model="other", prompt="a")
    with pytest.raises(openai.APIStatusError, match="more than the 4096") as caught:
        client.completions.create(model="tiny", prompt="a", max_tokens=5000)
    assert caught.value.status_code == 413
    assert server.call("POST", "/v1/completions", content=b"{").json()["error"]["type"] == "invalid_request_error"
    assert server.call("GET", "/nowhere").json()["error"]["type"] == "not_found_error"
    assert server.call("GET", "/v1/completions").status_code == 405
    for odd in (b'"a","temperature":NaN', rb'"\ud800"', b"[" * 100_000):
        answer = server.call("POST", "/v1/completions", content=b'{"model":"tiny","prompt":' + odd + b"}")
        assert answer.status_code == 400 and answer.json()["error"]["message"], odd


def test_without_a_template_there_is_no_chat(server: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.tokenizer, "chat_template", None)
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        server.client().chat.completions.create(model="tiny", messages=CHAT)
