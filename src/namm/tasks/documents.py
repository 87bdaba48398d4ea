"""Documents to read, train on and hide things in: from files, from Python itself, from the package."""

import hashlib
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from namm.tasks.rows import json_lines, read_utf8

Kind = Literal["prose", "code"]

PROSE_SUFFIXES = frozenset({".txt", ".md", ".rst"})
CODE_SUFFIXES = frozenset(
    {".py", ".js", ".ts", ".c", ".h", ".cc", ".cpp", ".hpp", ".cs", ".java", ".kt", ".go", ".rs", ".rb", ".php"}
    | {".swift", ".scala", ".lua", ".pl", ".r", ".sh", ".sql"}
)
DEFAULT_FRACTIONS: Mapping[str, float] = {"train": 0.7, "validation": 0.1, "test": 0.2}

# Tables and lists written by programs, whose lines say little about how people write code.
_GENERATED_MODULES = frozenset({"keyword", "opcode", "sre_constants", "stringprep", "token"})


@dataclass(frozen=True)
class Document:
    """A text with a name to report it by; ``kind`` is "prose" or "code"."""

    name: str
    text: str
    kind: Kind


def read_documents(*paths: str | Path) -> list[Document]:
    """Read files, or every file of a known kind in folders and below them, in the order of their names.

    Text (.txt, .md, .rst) and source code are one document a file. A .jsonl file is one document a line, in the format
    of LongBench (``context``), L-Eval or RULER (``input``). In a folder, files of other kinds, hidden ones and empty
    ones are passed over.
    """
    return [document for path in paths for document in _read_path(Path(path))]


def _read_path(path: Path) -> list[Document]:
    if path.is_file():
        if path.suffix.lower() not in PROSE_SUFFIXES | CODE_SUFFIXES | {".jsonl"}:
            raise ValueError(f"{path}: a file of unknown kind; name it .txt, .md, .jsonl or as source code")
        documents = _read_file(path, path.name)
        if not documents:
            raise ValueError(f"{path}: the file is empty")
        return documents
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or folder")
    documents = []
    for file in sorted(path.rglob("*")):
        inside = file.relative_to(path)
        if file.is_file() and not any(part.startswith(".") for part in inside.parts):
            documents += _read_file(file, inside.as_posix())
    if not documents:
        raise ValueError(f"{path}: no documents found; looked for text (.txt, .md, .rst), source code and .jsonl files")
    return documents


def standard_library_documents(minimum_characters: int = 4_000, limit: int | None = None) -> list[Document]:
    """Code that every machine has: the single-file modules of Python's standard library, in the order of their names.

    Packages, tests and generated tables are left out. The texts differ from one version of Python to the next.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    documents: list[Document] = []
    for file in sorted(folder.glob("*.py")):
        if limit is not None and len(documents) >= limit:
            break
        if file.stem in _GENERATED_MODULES or file.stem.startswith("_sysconfigdata"):
            continue
        document = Document(file.name, read_utf8(file), "code")
        if len(document.text) >= minimum_characters:
            documents.append(document)
    if not documents and limit != 0:
        raise FileNotFoundError(f"{folder}: no modules of at least {minimum_characters} characters; read your own")
    return documents


def packaged_prose(prefix: str = "") -> list[Document]:
    """The public-domain prose shipped with the package, of files whose name starts with ``prefix``."""
    folder = resources.files("namm").joinpath("data", "prose")
    files = sorted(folder.iterdir(), key=lambda file: file.name) if folder.is_dir() else []
    chosen = [file for file in files if file.name.startswith(prefix) and file.name.endswith(".txt")]
    if not chosen:
        names = ", ".join(file.name for file in files if file.name.endswith(".txt")) or "none"
        raise FileNotFoundError(f"no packaged prose starts with {prefix!r}; there is: {names}")
    return [Document(file.name, file.read_text(encoding="utf-8"), "prose") for file in chosen]


def heldout_documents(code: int | None = None) -> list[Document]:
    """What every machine has and the shipped memory has not learned from: packaged prose, the standard library's code.

    Args:
        code: at most so many documents of it.
    """
    library = split_documents(standard_library_documents(minimum_characters=12_000), seed=0)["test"]
    return packaged_prose("heldout") + library[:code]


def cut_documents(documents: Iterable[Document], characters: int) -> list[Document]:
    """Pieces of so many characters, numbered from 1; what is left at an end is passed over."""
    pieces = []
    for document in documents:
        for number in range(len(document.text) // characters):
            piece = document.text[number * characters : (number + 1) * characters]
            pieces.append(Document(f"{document.name} ({number + 1})", piece, document.kind))
    return pieces


def split_documents(
    documents: Iterable[Document], *, seed: int, fractions: Mapping[str, float] = DEFAULT_FRACTIONS
) -> dict[str, list[Document]]:
    """Deal documents out to named splits by a hash of their content.

    The split of a document depends on its words, the seed and the fractions only: never on its name, its white space
    or the other documents. So a document stays where it is when others come or go, copies of it stay together, and no
    two splits share one. The price is that the sizes meet the fractions only on average, and a split can be empty.

    Args:
        documents: in any order, which every split keeps.
        seed: another seed, another division.
        fractions: share of each split by its name; their sum must be 1.
    """
    if any(share < 0 for share in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-6:
        raise ValueError(f"fractions must not be negative and must sum to 1, not {dict(fractions)}")
    splits: dict[str, list[Document]] = {name: [] for name in fractions}
    for document in documents:
        words = " ".join(document.text.split())
        digest = hashlib.sha256(f"{seed}\n{words}".encode("utf-8", "surrogatepass")).digest()
        point = int.from_bytes(digest[:8], "big") / 2**64
        splits[_split_at(point, fractions)].append(document)
    return splits


def _split_at(point: float, fractions: Mapping[str, float]) -> str:
    """Name of the split in whose stretch of [0, 1) the point lies."""
    end = 0.0
    chosen = ""
    for name, share in fractions.items():
        end += share
        if share > 0:
            chosen = name  # rounding may leave the ends just short of 1: the last split that has a share takes the rest
            if point < end:
                break
    return chosen


def _read_file(file: Path, name: str) -> list[Document]:
    """The documents of one file; none where it is of no known kind or blank."""
    suffix = file.suffix.lower()
    if suffix == ".jsonl":
        return _read_lines(file, name)
    if suffix not in PROSE_SUFFIXES | CODE_SUFFIXES:
        return []
    text = read_utf8(file)
    kind: Kind = "code" if suffix in CODE_SUFFIXES else "prose"
    return [Document(name, text, kind)] if text.strip() else []


def _read_lines(file: Path, name: str) -> list[Document]:
    """One document for each line of JSON: its ``context``, or its ``input`` where it has none."""
    documents = []
    for where, record in json_lines(file):
        text = record.get("context") or record.get("input")
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{where}: no text under 'context' (LongBench) or 'input' (L-Eval, RULER)")
        documents.append(Document(f"{name}:{where.rpartition(':')[2]}", text, "prose"))
    return documents
