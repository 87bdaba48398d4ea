"""The command line, one file a command: parses, calls the library, prints."""

import typer

from namm.cli.compare import compare
from namm.cli.demo import demo
from namm.cli.distill import distill
from namm.cli.eval import evaluate
from namm.cli.evolve import evolve
from namm.cli.generate import generate
from namm.cli.inspect import inspect_texts
from namm.cli.plan import plan
from namm.cli.refine import refine

app = typer.Typer(
    help="Neural attention memory for transformers: a KV cache that forgets.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (demo, generate, compare, plan, distill, refine, evolve):
    app.command()(command)
app.command("eval")(evaluate)
app.command("inspect")(inspect_texts)
