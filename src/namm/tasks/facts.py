"""Facts that nothing in a text leads to, hidden in it: what a memory must keep although nobody asks yet."""

from __future__ import annotations

import random
import re
import uuid
from dataclasses import dataclass

_SENTENCE_END = re.compile(r"[.!?][\"')]*\s|\n\s*\n")
_LINE_END = re.compile(r"\n")
THINGS = [
    "pass key",
    "access code",
    "locker number",
    "account number",
    "ticket id",
    "phone extension",
    "serial number",
    "door code",
    "vault code",
    "flight number",
    "password",
    "meeting room",
    "postal code",
    "order number",
    "batch size",
    "port number",
]
_KINDS = ["", "", "red ", "blue ", "hidden ", "old ", "second ", "spare ", "northern ", "final ", "secret "]
NAMES = [
    "Alice",
    "Bruno",
    "Chandra",
    "Dmitri",
    "Elena",
    "Farid",
    "Grace",
    "Hiro",
    "Ingrid",
    "Jonas",
    "Keiko",
    "Lamar",
    "Mehmet",
    "Nadia",
    "Olu",
    "Petra",
]
_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ0123456789"
_FORMS = (
    "The {kind}{thing} is {value}.",
    "The {kind}{thing} is {value}. Remember it.",
    "The {kind}{thing} is {value}. Remember it. {value} is the {kind}{thing}.",
    "The {thing} of {name} is {value}.",
    "One of the special magic numbers for {name} is: {value}.",
    "{name}'s {thing} is {value}, and nobody else knows it.",
    "Note: {kind}{thing} = {value}.",
    '"Write this down," said {name}, "the {kind}{thing} is {value}."',
    "{name} paid with the {kind}{thing} {value}.",
    "From tomorrow on {name} will use {value} as {thing}.",
    "\n- {name}, {kind}{thing}: {value}\n",
    '\n{slug} = "{value}"\n',
    '\n"{slug}": "{value}",\n',
    "\n# {thing} of {name}: {value}\n",
)
_MONTHS = ("January", "March", "April", "June", "August", "September", "November")


@dataclass(frozen=True)
class Fact:
    """One or two sentences that state a value, the words before the value, and the value."""

    statement: str
    question: str
    answer: str


def random_fact(rng: random.Random) -> Fact:
    """A fact with a value that nobody could guess: digits, letters, a UUID, words, a date, an amount or an address.

    >>> random_fact(random.Random(1))
    Fact(statement='\\n# vault code of Dmitri: 9549756\\n', question='\\n# vault code of Dmitri: ', answer='9549756')
    """
    value = rng.choice(
        (
            lambda: str(rng.randint(10**4, 10**5 - 1)),
            lambda: str(rng.randint(10**4, 10**5 - 1)),
            lambda: str(rng.randint(100, 10**7)),
            lambda: str(rng.randint(100, 10**7)),
            lambda: str(uuid.UUID(int=rng.getrandbits(128))),
            lambda: "".join(rng.choice(_LETTERS) for _ in range(rng.randint(5, 8))),
            lambda: f"{rng.choice(NAMES)} {rng.choice(_KINDS).strip() or 'green'} {rng.choice(THINGS).split()[0]}",
            lambda: f"{rng.randint(1, 28)} {rng.choice(_MONTHS)} {rng.randint(1800, 2100)}",
            lambda: f"{rng.randint(10, 99_999) / 10:,.2f}",
            lambda: f"0{rng.randint(100, 999)}-{rng.randint(10_000, 999_999)}",
            lambda: f"{rng.choice(NAMES).lower()}{rng.randint(10, 999)}@{rng.choice(THINGS).split()[0]}.example",
        )
    )()
    form = rng.choice(_FORMS)
    words = {"kind": rng.choice(_KINDS), "thing": rng.choice(THINGS), "name": rng.choice(NAMES)}
    words["slug"] = f"{words['kind']}{words['thing']}".replace(" ", "_")
    return Fact(form.format(**words, value=value), form.partition("{value}")[0].format(**words), value)


def hide_facts(text: str, count: int, rng: random.Random) -> tuple[str, list[Fact]]:
    """The text with `count` random facts between its sentences (or lines, where there are no sentences), and they."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    ends = ends or [match.end() for match in _LINE_END.finditer(text)] or [len(text)]
    places = sorted(rng.choice(ends) for _ in range(count))
    facts = [random_fact(rng) for _ in places]
    parts, last = [], 0
    for place, fact in zip(places, facts, strict=True):
        parts += [text[last:place], fact.statement, " "]
        last = place
    return "".join([*parts, text[last:]]), facts
