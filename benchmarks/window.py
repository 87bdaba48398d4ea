"""Loss of a text's end past the model's window: full cache and memory, with stretched positions and without.

    python benchmarks/window.py                                     # SmolLM2 at 1, 2 and 4 times its window: hours
    python benchmarks/window.py --text FOLDER --lengths 8192 16384

Every length ends at the same tokens, so that only what came before them differs.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from measuring import Measurements, load, made_with, parser
from rich.progress import track

from namm.models.rope import extend_window
from namm.policies.names import make_policy
from namm.tasks import packaged_prose, read_documents
from namm.tasks.answering import tail_loss
from namm.tasks.encode import beginning, encode


def main() -> None:
    options = parser(__doc__, "window")
    options.add_argument("--kept", type=float, help="aim at this kept fraction (else the memory's own choice)")
    options.add_argument("--text", type=Path, nargs="+", help="texts, joined, in place of the packaged prose")
    options.add_argument("--lengths", type=int, nargs="+", default=[8192, 16384, 32768])
    options.add_argument("--factors", type=float, nargs="+", default=[1.0, 4.0], help="of the window; 1: as it is")
    options.add_argument("--tail", type=int, default=256)
    arguments = options.parse_args()
    if arguments.quick:
        arguments.lengths, arguments.tail = [512, 1024], 32
    documents = read_documents(*arguments.text) if arguments.text else packaged_prose()
    setup = load(arguments)
    results = Measurements(arguments, made_with(arguments, setup))
    ids = encode(setup.tokenizer, "\n\n".join(document.text for document in documents))
    if ids.shape[1] < max(arguments.lengths):
        raise SystemExit(f"the texts have {ids.shape[1]} tokens, {max(arguments.lengths)} are needed: --text FOLDER")
    ids, start = ids[:, : max(arguments.lengths)], torch.tensor([beginning(setup.tokenizer)], dtype=torch.long)
    for factor in arguments.factors:
        model = load(arguments).model
        if factor > 1:
            extend_window(model, factor)
        for length in track(arguments.lengths, f"positions stretched by {factor:g}"):
            for name in ("full", "namm"):
                policy = make_policy(name, arguments.kept, setup.memory)
                end = torch.cat([start, ids[:, start.shape[1] - length :]], dim=1)
                measure = partial(tail_loss, model, end, policy, arguments.tail)
                results.row(lambda measure=measure: dict(vars(measure())), tokens=length, factor=factor, policy=name)
    results.write()


if __name__ == "__main__":
    main()
