"""What goes wrong ends in one sentence; ``namm --debug`` shows the traceback."""

from __future__ import annotations

import math
import sys
from typing import Any

import typer
from typer.core import TyperCommand

from namm.cli.console import complain, errors


class Command(TyperCommand):
    """A command whose errors are one sentence on standard error and an exit code.

    1: what a user can mend, and bugs, which are called so; 2: usage; 130: interrupted.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            _need_finite(ctx.params)
            result = super().invoke(ctx)
            sys.stdout.flush()  # a reader that has gone is noticed here, not while Python shuts down
            return result
        except KeyboardInterrupt:
            errors.print("stopped")
            raise typer.Exit(130) from None
        except (typer.Abort, BrokenPipeError):  # nobody is there to read a sentence
            raise
        except Exception as error:
            if hasattr(error, "exit_code") or ctx.find_root().params.get("debug"):  # the former are typer's own
                raise
            complain(_sentence(error))
            raise typer.Exit(1) from None


def _need_finite(options: dict[str, Any]) -> None:
    """No option means anything at infinity or NaN, which typer's own bounds let through."""
    for name, value in options.items():
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise typer.BadParameter(f"{number} is no finite number", param_hint=f"--{name.replace('_', '-')}")


def _sentence(error: Exception) -> str:
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or "DefaultCPUAllocator" in str(error):
        return f"out of memory: {str(error).splitlines()[0] if str(error) else 'try a shorter text or a smaller model'}"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    ours = isinstance(error, ImportError) and (error.name or "").startswith("namm")
    if isinstance(error, OSError | ValueError | ImportError) and str(error) and not ours:
        return str(error)
    return (
        f"this is a bug in namm ({type(error).__name__}: {str(error) or 'no more is known'}): please report it with "
        "the traceback that `namm --debug` before the command shows"
    )
