"""Options that commands share, each declared once, and the names that help texts list.

Nothing here, nor at the head of a command's file, imports what needs torch: ``--help`` is quick. A test holds the names
against those of the library.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

DEFAULT_MODEL, DEFAULT_MEMORY = "smollm2-135m", "universal"
POLICIES = ("full", "namm", "streaming", "h2o", "l2", "tova", "snapkv", "keydiff", "expected", "kvzip", "random")
PRESETS = ("cpu-demo", "cpu", "gpu", "universal")
CONFIGS = ("gemma3-270m", "meta-llama-3-70b", "meta-llama-3-8b", "smollm2-135m")
SUITES = ("offline", "longbench", "choubun", "leval", "infinitebench", "ruler", "needle")
REFINE_BOUNDS, REFINE_RECALL, REFINE_STRIDE = "300", 1.0, 0.2


class Dtype(StrEnum):
    """Of weights and cache."""

    AUTO = "auto"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


ModelsOption = Annotated[
    list[str] | None,
    typer.Option("--model", help="Embedded model, hub id, folder or .gguf file; repeat it to learn from several."),
]
ModelOption = Annotated[str, typer.Option("--model", help="Embedded model, hub id, local folder or .gguf file.")]
MemoryOption = Annotated[str, typer.Option("--memory", help="Shipped memory, folder or hub id.")]
KeptOption = Annotated[
    float | None,
    typer.Option(
        "--kept",
        min=0.01,
        max=1.0,
        help="Keep this fraction of the tokens (else the memory's own choice).",
    ),
]
RehearseOption = Annotated[
    bool,
    typer.Option(
        "--rehearse",
        help="The model repeats what it reads before the policy decides: a second pass over it.",
    ),
]
PolicyOption = Annotated[str, typer.Option("--policy", help=f"One of {', '.join(POLICIES)}.")]
BudgetOption = Annotated[
    float | None,
    typer.Option("--budget", min=0.0, help="Tokens that are kept, mean over heads; of a rule also a fraction (0.25)."),
]
BitsOption = Annotated[
    int | None,
    typer.Option("--bits", help="Hold keys and values in 8 or 4 bits once they are decided on."),
]
TokensOption = Annotated[
    int | None,
    typer.Option("--budget", min=2, help="In place of --kept: tokens that are kept, mean over heads and layers."),
]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="Of the weights.")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="Where the model runs, for example cuda.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Of everything random.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
OutputArgument = Annotated[Path, typer.Argument(help="Folder for the memory; the same command again resumes.")]
TextOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--text",
        help="File or folder of texts (.txt, .md, source code, .jsonl); repeat it for more. "
        "Default: Python's standard library.",
    ),
]
TrainSplitOption = Annotated[
    bool, typer.Option("--train-split", help="Of --text, learn from the training split only (namm.tasks).")
]
LibraryOption = Annotated[bool, typer.Option("--library", help="Read Python's standard library as well as --text.")]
