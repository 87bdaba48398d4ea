from __future__ import annotations

from copy import deepcopy
from itertools import islice
from typing import TYPE_CHECKING, Any

from namm.cli import common, options
from namm.cli.compare import HEADINGS, cells
from namm.cli.console import console, print_table
from namm.cli.options import Dtype
from namm.cli.progress import stages

if TYPE_CHECKING:
    from namm.cache import MemoryCache

# what the default model, a very small one, answers surely with everything kept
QUESTIONS = ("What is the dog's name?", "What is the warden's name?", "What bird came down in September?")
NEXT = (
    ("ask something yourself", 'namm generate --question "What is the name of the island?" --kept 0.25'),
    ("see every token, kept or forgotten, in a page", "namm inspect -o page.html"),
    ("put all rules beside each other on a longer text", "namm compare"),
)
TAIL = 256  # tokens of the text whose loss is measured
RULES = 4  # of the table: full, namm and the first two of the others
PHRASES, WORDS = 3, 4  # shown at either end; words that a phrase has at least


def demo(
    model: options.ModelOption = options.DEFAULT_MODEL,
    memory: options.MemoryOption = options.DEFAULT_MEMORY,
    kept: options.KeptOption = 0.25,
    dtype: options.DtypeOption = Dtype.AUTO,
) -> None:
    """A real model reads a text, forgets most of it, and is asked about it; then a few rules side by side."""
    import torch

    from namm.cache import MemoryCache
    from namm.cli.reading import answer, read
    from namm.evaluation import compare
    from namm.memory import NAMM
    from namm.tasks.chat import ask, in_chat
    from namm.tasks.encode import encode

    own = NAMM.from_pretrained(memory)
    policies = {"full": common.policy_from("full", own), "namm": common.policy_from("namm", own, kept=kept)}
    network, tokenizer = common.load(model, dtype, None)
    document = common.packaged_story()
    before, text, _ = in_chat(tokenizer, document.text.strip()).partition(document.text.strip())
    context = encode(tokenizer, before + text).to(network.device)

    console.rule("1. A text goes in, and most of it is forgotten")
    title = text.partition("\n")[0]
    console.print(f"{model} reads {title!r}, {context.shape[1]} tokens, into two caches; no question is known yet.\n")
    caches: dict[str, MemoryCache] = {}
    with torch.inference_mode(), stages() as progress:
        for name, policy in policies.items():
            caches[name] = MemoryCache(network, policy)
            read(network, context, caches[name], progress, f"reading ({name})")
    rows = [
        (
            name,
            f"{stats.kept_tokens:.0f} ({stats.kept_fraction:.0%})",
            f"{stats.held_bytes / 2**20:.1f}",
            f"{stats.state_bytes / 2**20:.1f}",
        )
        for name, stats in ((name, cache.stats()) for name, cache in caches.items())
    ]
    print_table("", ("cache", "tokens kept, mean of all heads", "MiB", "of it the policy's own"), rows)
    phrases = sorted(_phrases(tokenizer, context[0], caches["namm"]), reverse=True)
    for heading, some in (("kept most", phrases[:PHRASES]), ("kept least", phrases[-PHRASES:])):
        console.print(f"\n{heading} by namm, all but the newest considered; share of heads that hold a phrase:")
        for share, phrase in some:
            console.print(f"  {share:4.0%}  {phrase}", style="green" if heading == "kept most" else "dim")

    console.print()
    console.rule("2. Only now it is asked about the text")
    for question in QUESTIONS:
        after = in_chat(tokenizer, f"{text}\n\n{ask(question)}").partition(text)[2]
        ids = torch.cat([context, encode(tokenizer, after, begins=False).to(network.device)], dim=1)
        console.print(f"\n{question}", style="bold")
        for name, cache in caches.items():
            with torch.inference_mode():
                found = answer(network, tokenizer, ids, deepcopy(cache), 40)  # as the text left it
            console.print(f"  {name}: {tokenizer.decode(found, skip_special_tokens=True).strip()}")

    console.print()
    ids = encode(tokenizer, text).to(network.device)
    read_first = ids.shape[1] - TAIL
    console.rule(f"3. A few rules: {read_first} tokens are read, then the model is to say the next {TAIL}")
    with stages() as progress:
        table = []
        for row in islice(compare(network, ids, own, kept=kept, tail=TAIL), RULES):
            table.append(row)
            progress("rules", len(table), RULES, row.policy)
    print_table("rise: of the loss over that of the full cache, nats a token", HEADINGS, cells(table))

    console.print()
    console.rule("What to type next")
    for what, command in NEXT:
        console.print(f"{what}:\n  {command}", soft_wrap=True)


def _phrases(tokenizer: Any, ids: Any, cache: MemoryCache) -> list[tuple[float, str]]:
    """Phrases of at least `WORDS` words, each with the mean share of heads that hold its tokens.

    The newest are left out: every rule keeps what has just come.
    """
    import torch

    heads = [positions for layer in cache.positions() for positions in layer[0]]
    held = torch.zeros(len(ids))
    for positions in heads:
        held[positions.long().cpu()] += 1 / len(heads)
    phrases, start = [], 0
    for end, token in enumerate(ids.tolist(), start=1):
        if tokenizer.decode([token]).strip().endswith((",", ".", ":", ";")):
            phrase = tokenizer.decode(ids[start:end], skip_special_tokens=True).strip()
            if len(phrase.split()) >= WORDS and end <= len(ids) - (cache.policy.update_interval or 0):
                phrases.append((float(held[start:end].mean()), " ".join(phrase.split())))
            start = end
    return phrases
