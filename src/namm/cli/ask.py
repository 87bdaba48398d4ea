from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from namm.cli import common, options
from namm.cli.console import console, errors, print_json
from namm.cli.options import Dtype


def ask_text(
    folder: Annotated[Path, typer.Argument(help="What `namm read` wrote.")],
    questions: Annotated[list[str], typer.Argument(help="Each is asked by itself.")],
    model: Annotated[str | None, typer.Option("--model", help="Where the model is now, if not where it was.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer at most.")] = 128,
    dtype: options.DtypeOption = Dtype.AUTO,
    device: options.DeviceOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Ask about a text that was read before, without reading it again."""
    if not all(question.strip() for question in questions):
        raise ValueError("there is an empty question")

    import torch

    from namm.cache import MemoryCache
    from namm.cache.saved import Saved
    from namm.cli.reading import answer
    from namm.tasks.chat import question_after
    from namm.tasks.encode import encode

    saved = Saved.read(folder)
    notes, ids = saved.header["notes"], saved.ids()
    if "chat" not in notes or ids is None:
        raise ValueError(f"{folder} was not written by `namm read`: use MemoryCache.load and generate in Python")
    network, tokenizer = common.load(model or notes["model"], dtype, device)
    cache = MemoryCache.load(network, folder, tokenizer)
    for question in questions:
        asked = encode(tokenizer, question_after(tokenizer, question, notes["chat"]), begins=False)
        whole = torch.cat([ids, asked], dim=1).to(network.device)
        with torch.inference_mode():
            found = answer(network, tokenizer, whole, cache.fork(), max_new_tokens)
        said = tokenizer.decode(found, skip_special_tokens=True).strip()
        if as_json:
            print_json({"question": question, "answer": said, "new_tokens": len(found)})
        elif len(questions) > 1:
            console.print(f"{question}\n  {said}", soft_wrap=True)
        else:
            console.print(said, soft_wrap=True)
        if not said:
            errors.print("the model answered nothing")
