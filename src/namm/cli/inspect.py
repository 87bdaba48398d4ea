from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from namm.cli import common, options
from namm.cli.console import console, print_json, print_table
from namm.cli.options import Dtype
from namm.cli.progress import Update, stages

if TYPE_CHECKING:
    from namm.inspection import ClassShare, Inspection
    from namm.memory import NAMM
    from namm.tasks import Document
    from namm.tasks.documents import Kind

CODE_TEXTS, PIECE = 12, 9_000  # default texts: modules, and characters of a piece of prose


def inspect_texts(
    texts: Annotated[
        list[Path] | None, typer.Argument(help="Files or folders (default: what comes with the package).")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The page, for one text.")] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Folder for the table of token classes, as Markdown, JSON and bar chart.")
    ] = None,
    model: options.ModelOption = options.DEFAULT_MODEL,
    memory: Annotated[
        list[str] | None, typer.Option(help="Shipped memory, folder or hub id; repeatable, side by side.")
    ] = None,
    policy: Annotated[list[str] | None, typer.Option(help="namm, full or a rule; repeatable, side by side.")] = None,
    kept: options.KeptOption = None,
    budget: options.TokensOption = None,
    tokens: Annotated[int, typer.Option(min=16, help="Read at most this many tokens of a text.")] = 8192,
    dtype: options.DtypeOption = Dtype.AUTO,
    device: options.DeviceOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """What is remembered: a page to look at, and how much is kept of each class of tokens."""
    if output is None and classes is None:
        raise ValueError("name what to write: -o report.html, --classes FOLDER, or both")
    if output is not None and not output.parent.is_dir():
        raise ValueError(f"{output.parent} is no folder")

    from namm.inspection import class_shares, inspect, save_report, token_classes
    from namm.inspection.table import HEADINGS, cells
    from namm.memory import NAMM
    from namm.policies.names import check_policies
    from namm.support.extras import require
    from namm.support.runs import check_output, check_output_file

    policies = policy or ["namm"]
    check_policies(policies)
    names = memory or [options.DEFAULT_MEMORY]
    inputs = [*(texts or ()), *names, model]
    if output is not None:
        check_output_file(output, inputs)
    if classes is not None:
        require(["matplotlib"], "eval")
        check_output(classes, inputs=inputs)
        common.check_writable(classes)
    documents = [document for path in texts for document in _documents(path)] if texts else _default(output)
    if output is not None and len(documents) > 1:
        raise ValueError(f"a page shows one text, and these are {len(documents)}; --classes FOLDER takes them all")
    memories = [(name, NAMM.from_pretrained(name)) for name in names]
    network, tokenizer = common.load(model, dtype, device)
    found: dict[tuple[Kind, str], list[tuple[Inspection, list[str]]]] = {}
    with stages() as update:
        read = partial(inspect, network, tokenizer, tokens=tokens)
        for number, document in enumerate(documents):
            update("texts", number, len(documents), document.name)
            inspected = _inspections(read, document, policies, memories, kept, budget, update)
            named = token_classes(document, inspected[0].spans)  # the same tokens under every policy
            for one in inspected:
                found.setdefault((document.kind, one.name), []).append((one, named))
        update("texts", len(documents), len(documents))
    shares = [share for (kind, _), own in sorted(found.items()) for share in class_shares(own, kind)]
    written: dict[str, object] = {}
    if output is not None:
        save_report(
            [own[0][0] for own in found.values()], output, title=documents[0].name, classes=named, shares=shares
        )
        written["page"] = str(output)
    if classes is not None:
        _save_classes(shares, classes)
        written["folder"] = str(classes)
    if as_json:
        print_json(written | {"classes": [asdict(share) for share in shares]})
        return
    if output is not None:
        console.print(f"{output}: {output.stat().st_size / 2**20:.1f} MiB")
    for kind in dict.fromkeys(share.kind for share in shares):
        order = list(dict.fromkeys(share.name for share in shares if share.kind == kind))
        own = sorted((s for s in shares if s.kind == kind), key=lambda share: order.index(share.name))
        print_table(f"classes of tokens in {kind}", HEADINGS, [cells(share) for share in own], left=2)
    if classes is not None:
        console.print(f"table and chart are in {classes}")


def _save_classes(shares: list[ClassShare], folder: Path) -> None:
    from namm.inspection import plot_classes
    from namm.inspection.table import HEADINGS, cells
    from namm.support.files import strict_json, write_atomically
    from namm.support.plotting import markdown_table
    from namm.support.runs import claim

    with claim(folder, "table of token classes", {}):
        write_atomically(folder / "classes.json", strict_json([asdict(share) for share in shares], indent=1) + "\n")
        write_atomically(folder / "classes.md", markdown_table(HEADINGS, [cells(share) for share in shares]))
        plot_classes(shares, folder / "classes.png")


def _default(output: Path | None) -> list[Document]:
    """One text to look at; to count, pieces of the packaged prose and modules of Python that no memory was made on."""
    from namm.tasks import heldout_documents
    from namm.tasks.documents import cut_documents

    if output is not None:
        return [common.packaged_story()]
    texts = heldout_documents(code=CODE_TEXTS)
    prose = cut_documents([text for text in texts if text.kind == "prose"], PIECE)
    return prose + [text for text in texts if text.kind == "code"]


def _documents(path: Path) -> list[Document]:
    """Of one file whatever its name, of a folder those that are texts."""
    from namm.tasks import Document, read_documents
    from namm.tasks.documents import CODE_SUFFIXES, PROSE_SUFFIXES

    if path.is_file() and path.suffix.lower() not in PROSE_SUFFIXES | CODE_SUFFIXES | {".jsonl"}:
        return [Document(path.name, common.read_text(path), "prose")]
    return read_documents(path)


def _inspections(
    read: Any,
    document: Document,
    policies: list[str],
    memories: list[tuple[str, NAMM]],
    kept: float | None,
    budget: int | None,
    update: Update,
) -> list[Inspection]:
    """One for each memory under ``namm``, then the others; what the first memory keeps is the hand-designed budget."""
    _, first = memories[0]
    found: list[Inspection] = []
    share: float = budget or kept or 0.25
    for name in sorted(policies, key=lambda name: name != "namm"):
        for title, own in memories if name == "namm" else [(name, first)]:
            shown = f"namm ({title})" if name == "namm" and len(memories) > 1 else name
            given = {"kept": kept, "budget": budget} if name == "namm" else {"budget": share} if name != "full" else {}
            rule = common.policy_from(name, own, **given)
            found.append(read(document.text, rule, name=shown, progress=partial(update, shown)))
        if name == "namm":
            share = found[0].stats.kept_fraction
    return found
