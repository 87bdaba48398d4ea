"""The command line, one file a command: parses, calls the library, prints.

A command's file imports what it works with in the command's body, so that ``--help`` needs none of it.
"""

import os
from collections.abc import Callable
from typing import Annotated

import typer

from namm.cli.ask import ask_text
from namm.cli.compare import compare
from namm.cli.console import console, speak_utf8
from namm.cli.demo import demo
from namm.cli.distill import distill
from namm.cli.errors import Command
from namm.cli.eval import evaluate
from namm.cli.evolve import evolve
from namm.cli.generate import generate
from namm.cli.inspect import inspect_texts
from namm.cli.plan import plan
from namm.cli.read import read_text
from namm.cli.refine import refine
from namm.cli.serve import serve
from namm.cli.tune import tune
from namm.support.version import VERSION

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        console.print(f"namm {VERSION}")
        raise typer.Exit()


@app.callback()
def _for_all(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Neural attention memory for transformers: a KV cache that forgets."""


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "generate": generate,
    "read": read_text,
    "ask": ask_text,
    "serve": serve,
    "compare": compare,
    "plan": plan,
    "distill": distill,
    "refine": refine,
    "evolve": evolve,
    "tune": tune,
    "eval": evaluate,
    "inspect": inspect_texts,
}
for name, command in COMMANDS.items():
    app.command(name, cls=Command)(command)


def main() -> None:
    """The program ``namm``."""
    # threads that wait for each other awake take twenty times as long where others use the processor too
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    speak_utf8()
    app(prog_name="namm")
