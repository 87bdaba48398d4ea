"""A long text read once, saved, and asked in another process, beside a full cache.

    python benchmarks/documents.py --model qwen2.5-coder-0.5b --chat --json benchmarks/results/documents-qwen.json
    python benchmarks/documents.py --text FOLDER --tokens 8000 --questions 5

Facts are hidden in the text, and asked for one by one, each as if the text had just been read. The packaged prose comes
again where a longer text is wanted than it is. For models whose layers all attend to the whole text.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import cycle
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from asking import Asked, answer, ask_saved
from measuring import Measurements, Row, Setup, load, made_with, parser
from torch import Tensor
from transformers import DynamicCache

from namm import MemoryCache
from namm.cache.saved import FILE
from namm.tasks import packaged_prose, read_documents
from namm.tasks.answering import PIECE
from namm.tasks.chat import chat_parts
from namm.tasks.encode import encode
from namm.tasks.facts import Fact, hide_facts


def main() -> None:
    options = parser(__doc__, "documents")
    options.add_argument("--text", type=Path, nargs="+", help="texts, joined, in place of the packaged prose")
    options.add_argument("--tokens", type=int, default=30_000)
    options.add_argument("--questions", type=int, default=20)
    options.add_argument("--new-tokens", type=int, default=16, help="of an answer")
    options.add_argument("--kept", type=float, default=0.25)
    options.add_argument("--bits", type=int, choices=(4, 8))
    options.add_argument("--chat", action="store_true", help="in the model's chat template")
    options.add_argument("--seed", type=int, default=0, help="of the facts and their places")
    arguments = options.parse_args()
    if arguments.quick:
        arguments.tokens, arguments.questions, arguments.new_tokens = 600, 2, 4
    setup = load(arguments)
    results = Measurements(arguments, made_with(arguments, setup))
    texts = read_documents(*arguments.text) if arguments.text else packaged_prose()
    text, facts = document(setup, [one.text for one in texts], arguments)
    asked = encoded(setup, text, facts, arguments.chat)
    right = partial(right_answers, setup, facts)
    what = {"tokens": asked[0].shape[1], "questions": len(facts), "new_tokens": arguments.new_tokens}
    results.row(lambda: full(setup, asked, arguments.new_tokens, right), **what, way="full")
    with tempfile.TemporaryDirectory() as folder:
        how = {"kept": arguments.kept, "bits": arguments.bits or 16}
        results.row(lambda: remembered(setup, asked, arguments, right, folder), **what, **how, way="namm")
    results.write()


def document(setup: Setup, texts: list[str], arguments: Any) -> tuple[str, list[Fact]]:
    """A text of so many tokens, in which facts are hidden."""
    parts, count = [], 0
    for part in cycle(texts):
        if count >= arguments.tokens:
            break
        parts.append(part)
        count += encode(setup.tokenizer, part, begins=False).shape[1]
    ids = encode(setup.tokenizer, "\n\n".join(parts), begins=False)[0, : arguments.tokens]
    text, facts = hide_facts(setup.tokenizer.decode(ids), arguments.questions, random.Random(arguments.seed))
    return text, facts


def encoded(setup: Setup, text: str, facts: list[Fact], chat: bool) -> Asked:
    """The text as it is read, and each question as it follows."""
    if chat:
        parts = [chat_parts(setup.tokenizer, text, "\n\nWhat is missing?", fact.question) for fact in facts]
    else:
        parts = [(text, f"\n\n{fact.question}") for fact in facts]
    questions = [encode(setup.tokenizer, question, begins=False) for _, question in parts]
    return encode(setup.tokenizer, parts[0][0]), questions


def full(setup: Setup, asked: Asked, new_tokens: int, right: Callable[[list[list[int]]], int]) -> Row:
    """transformers' own cache, kept in memory, which every question and answer is cut off again."""
    ids, questions = asked
    cache = DynamicCache(config=setup.model.config)
    seconds = read(setup, ids, cache)
    size = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    started, answers = time.perf_counter(), []
    for question in questions:
        answers.append(answer(setup.model, setup.tokenizer, ids, question, cache, new_tokens))
        cache.crop(ids.shape[1] - cache.get_seq_length())
    asking = time.perf_counter() - started
    return {"read_seconds": seconds, "ask_seconds": asking, "held_bytes": size, "right": right(answers)}


def remembered(setup: Setup, asked: Asked, arguments: Any, right: Callable[[list[list[int]]], int], folder: str) -> Row:
    """A memory's cache, asked where it is, and saved, loaded and asked in another process."""
    ids, questions = asked
    policy, _ = setup.policy("namm", arguments.kept)
    cache = MemoryCache(setup.model, policy, bits=arguments.bits)
    seconds = read(setup, ids, cache)
    stats, started = cache.stats(), time.perf_counter()
    cache.save(folder, setup.tokenizer, ids)
    saving, started = time.perf_counter() - started, time.perf_counter()
    new_tokens = arguments.new_tokens
    here = [answer(setup.model, setup.tokenizer, ids, one, cache.fork(), new_tokens) for one in questions]
    asking = time.perf_counter() - started
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
        task = other.submit(ask_saved, arguments.model, arguments.device, folder, asked, new_tokens)
        there, loading, asking_there = task.result()
    return {
        "read_seconds": seconds,
        "ask_seconds": asking,
        "save_seconds": saving,
        "load_seconds": loading,
        "saved_ask_seconds": asking_there,
        "kept_fraction": stats.kept_fraction,
        "held_bytes": stats.held_bytes,
        "file_bytes": (Path(folder) / FILE).stat().st_size,
        "right": right(here),
        "same": sum(one == other for one, other in zip(here, there, strict=True)),
    }


@torch.inference_mode()
def read(setup: Setup, ids: Tensor, cache: Any) -> float:
    """Read ``[1, tokens]`` in pieces, and decide at the end; seconds."""
    started = time.perf_counter()
    for piece in ids.to(setup.model.device).split(PIECE, dim=1):
        setup.model(piece, past_key_values=cache, logits_to_keep=1)
    if isinstance(cache, MemoryCache):
        cache.settle()
    if setup.model.device.type == "cuda":
        torch.cuda.synchronize(setup.model.device)
    return time.perf_counter() - started


def right_answers(setup: Setup, facts: list[Fact], answers: list[list[int]]) -> int:
    """How many begin with the value asked for, as far as they go."""
    said = [setup.tokenizer.decode(ids).strip() for ids in answers]
    return sum(one[: len(fact.answer)] == fact.answer[: len(one)] != "" for one, fact in zip(said, facts, strict=True))


if __name__ == "__main__":
    main()
