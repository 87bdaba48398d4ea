from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from namm.cli import common, options
from namm.cli.console import console, errors
from namm.cli.options import Dtype


def serve(
    folder: Annotated[Path, typer.Option("--folder", help="Where documents are kept; it belongs to the server.")],
    model: options.ModelOption = options.DEFAULT_MODEL,
    memory: options.MemoryOption = options.DEFAULT_MEMORY,
    policy: options.PolicyOption = "namm",
    kept: options.KeptOption = None,
    budget: options.BudgetOption = None,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="The model repeats every document before the memory decides.")
    ] = False,
    bits: options.BitsOption = None,
    cache_bytes: Annotated[str, typer.Option("--cache-bytes", help="All that caches may hold together.")] = "2GiB",
    host: Annotated[str, typer.Option("--host", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free.")] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option("--api-key", envvar="NAMM_API_KEY", help="That requests must bring; repeat it for more."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="What requests call the model.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=2, help="Of a document, a prompt and its answer together.")
    ] = None,
    max_body: Annotated[str, typer.Option("--max-body", help="Of a request.")] = "16MiB",
    queue: Annotated[int, typer.Option("--queue", min=1, help="Requests that wait at most.")] = 64,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Requests that are served at once at most.")] = 32,
    piece: Annotated[
        int | None,
        typer.Option(
            "--piece",
            min=1,
            help="Tokens of prompts that are read between two steps of the answers; 128 on a CPU, or 512.",
        ),
    ] = None,
    patience: Annotated[
        float, typer.Option("--patience", min=0.0, help="Seconds that running requests have at the end.")
    ] = 30.0,
    dtype: options.DtypeOption = Dtype.AUTO,
    device: options.DeviceOption = None,
) -> None:
    """Serve a model with OpenAI's API, and documents that are read once and asked often."""
    from namm.support.extras import require

    require(["fastapi", "uvicorn", "prometheus_client"], "serve")
    from namm.serving.settings import Settings, parse_bytes

    settings = Settings(
        memory=parse_bytes(cache_bytes),
        tokens=max_tokens,
        body=parse_bytes(max_body),
        rehearse=rehearse,
        queue=queue,
        batch=batch,
        keys=tuple(api_key or ()),
        patience=patience,
    )
    common.check_writable(folder)

    from namm.memory import NAMM
    from namm.serving.app import create_app
    from namm.serving.documents import Documents
    from namm.serving.prefill import rehearsing
    from namm.serving.run import run

    rule = common.policy_from(policy, NAMM.from_pretrained(memory), kept=kept, budget=budget)
    if rule.needs_rehearsal:
        raise ValueError(
            f"{policy!r} needs a rehearsal of all that it reads, which the server gives to documents only: choose "
            "another --policy"
        )
    if rehearse and rehearsing(rule) is None:
        raise ValueError(f"{policy!r} does not look at a rehearsal: leave --rehearse out, or serve a distilled memory")
    network, tokenizer = common.load(model, dtype, device)
    documents = Documents(folder, network, tokenizer)
    if documents.passed_over:
        count = documents.passed_over
        errors.print(
            f"{count} documents in {folder} are damaged or of another model, and are left alone", soft_wrap=True
        )
    served = name or Path(model).name
    settings = settings.on(network.device.type, piece)
    app = create_app(network, tokenizer, rule, documents, settings, name=served, bits=bits)
    run(app, host, port, lambda url: console.print(f"{served} is served at {url}", soft_wrap=True))
