from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from namm.cli import common
from namm.cli.common import DeviceOption, DtypeOption, KeptOption, ModelOption
from namm.inspection import Inspection, class_shares, inspect, plot_classes, save_report, token_classes
from namm.inspection.table import HEADINGS, cells
from namm.memory import NAMM
from namm.policies.names import check_policies, make_policy
from namm.support.files import strict_json, write_atomically
from namm.support.plotting import markdown_table
from namm.tasks import Document, heldout_documents, packaged_prose, read_documents
from namm.tasks.documents import CODE_SUFFIXES, PROSE_SUFFIXES, Kind, cut_documents

CODE_TEXTS, PIECE = 12, 9_000  # default texts: modules, and characters of a piece of prose


def inspect_texts(
    texts: Annotated[
        list[Path] | None, typer.Argument(help="Files or folders (default: what comes with the package).")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The page, for one text.")] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Folder for the table of token classes, as Markdown, JSON and bar chart.")
    ] = None,
    model: ModelOption = common.DEFAULT_MODEL,
    memory: Annotated[
        list[str] | None, typer.Option(help="Shipped memory, folder or hub id; repeatable, side by side.")
    ] = None,
    policy: Annotated[list[str] | None, typer.Option(help="namm, full or a rule; repeatable, side by side.")] = None,
    kept: KeptOption = None,
    tokens: Annotated[int, typer.Option(min=16, help="Read at most this many tokens of a text.")] = 8192,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
) -> None:
    """What is remembered: a page to look at, and how much is kept of each class of tokens."""
    with common.one_clear_error():
        policies = policy or ["namm"]
        check_policies(policies)
        documents = [document for path in texts for document in _documents(path)] if texts else _default(output)
        if output is not None and len(documents) > 1:
            raise ValueError(f"a page shows one text, and these are {len(documents)}; --classes FOLDER takes them all")
        if output is None and classes is None:
            raise ValueError("name what to write: -o report.html, --classes FOLDER, or both")
        if output is not None and not output.parent.is_dir():
            raise ValueError(f"{output.parent} is no folder")
        folder = classes and common.writable_folder(classes)
        memories = [(name, NAMM.from_pretrained(name)) for name in memory or [common.DEFAULT_MEMORY]]
        network, tokenizer = common.load(model, dtype, device)
        found: dict[tuple[Kind, str], list[tuple[Inspection, list[str]]]] = {}
        with common.stage_bars() as bars:
            for number, document in enumerate(documents):
                bars("texts", number, len(documents), document.name)
                inspected = _inspections(network, tokenizer, document, policies, memories, kept, tokens, bars)
                named = token_classes(document, inspected[0].spans)  # the same tokens under every policy
                for one in inspected:
                    found.setdefault((document.kind, one.name), []).append((one, named))
            bars("texts", len(documents), len(documents), "")
        shares = [share for (kind, _), own in sorted(found.items()) for share in class_shares(own, kind)]
        if output is not None:
            shown = [own[0][0] for own in found.values()]
            save_report(shown, output, title=documents[0].name, classes=named, shares=shares)
            common.console.print(f"{output}: {output.stat().st_size / 2**20:.1f} MiB", markup=False)
        for kind in dict.fromkeys(share.kind for share in shares):
            order = list(dict.fromkeys(share.name for share in shares if share.kind == kind))
            own = sorted((s for s in shares if s.kind == kind), key=lambda share: order.index(share.name))
            common.print_table(f"classes of tokens in {kind}", HEADINGS, [cells(share) for share in own], left=2)
        if folder:
            write_atomically(folder / "classes.json", strict_json([asdict(share) for share in shares], indent=1) + "\n")
            write_atomically(folder / "classes.md", markdown_table(HEADINGS, [cells(share) for share in shares]))
            plot_classes(shares, folder / "classes.png")
            common.console.print(f"table and chart are in {folder}", markup=False)


def _default(output: Path | None) -> list[Document]:
    """One text to look at; to count, pieces of the packaged prose and modules of Python that no memory was made on."""
    if output is not None:
        return packaged_prose()[:1]
    texts = heldout_documents(code=CODE_TEXTS)
    prose = cut_documents([text for text in texts if text.kind == "prose"], PIECE)
    return prose + [text for text in texts if text.kind == "code"]


def _documents(path: Path) -> list[Document]:
    """Of one file whatever its name, of a folder those that are texts."""
    if path.is_file() and path.suffix.lower() not in PROSE_SUFFIXES | CODE_SUFFIXES | {".jsonl"}:
        return [Document(path.name, common.read_text(path), "prose")]
    return read_documents(path)


def _inspections(
    network: Any,
    tokenizer: Any,
    document: Document,
    policies: list[str],
    memories: list[tuple[str, NAMM]],
    kept: float | None,
    tokens: int,
    bars: Any,
) -> list[Inspection]:
    """One for each memory under ``namm``, then the others; what the first memory keeps is the hand-designed budget."""
    _, first = memories[0]
    found = []
    budget = 0.25 if kept is None else kept
    for name in sorted(policies, key=lambda name: name != "namm"):
        for title, own in memories if name == "namm" else [(name, first)]:
            shown = f"namm ({title})" if name == "namm" and len(memories) > 1 else name
            rule = make_policy(name, kept if name == "namm" else budget, own)
            found.append(
                inspect(
                    network,
                    tokenizer,
                    document.text,
                    rule,
                    tokens=tokens,
                    name=shown,
                    progress=partial(bars, shown),
                )
            )
        if name == "namm":
            budget = found[0].stats.kept_fraction
    return found
