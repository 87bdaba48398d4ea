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
    replicas: Annotated[
        int | None, typer.Option("--replicas", min=1, help="Serve by so many processes, by Ray Serve.")
    ] = None,
    max_replicas: Annotated[
        int | None, typer.Option("--max-replicas", min=1, help="Start more under load, up to so many.")
    ] = None,
    ongoing: Annotated[
        int | None, typer.Option("--ongoing", min=1, help="Requests a replica beyond which more are started.")
    ] = None,
    cpus: Annotated[int, typer.Option("--cpus", min=1, help="Of each replica, which has as many threads.")] = 1,
    gpus: Annotated[
        int | None, typer.Option("--gpus", min=0, help="Of each replica; the model's layers are spread over several.")
    ] = None,
    ray: Annotated[str | None, typer.Option(help='Address of a Ray cluster, or "local".')] = None,
) -> None:
    """Serve a model with OpenAI's API, and documents that are read once and asked often."""
    from namm.support.extras import require

    require(["fastapi", "uvicorn", "prometheus_client"], "serve")
    several = replicas is not None or ray is not None
    if several:
        require(["ray.serve", "mmh3"], "replicas")
    elif max_replicas or ongoing or gpus is not None or cpus > 1:
        raise ValueError("--max-replicas, --ongoing, --cpus and --gpus are of replicas: give --replicas too")
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
    served = name or Path(model).name

    def ready(url: str) -> None:
        console.print(f"{served} is served at {url}", soft_wrap=True)

    if several:
        from namm.models.load import local_path
        from namm.serving.cluster import LOCAL
        from namm.serving.cluster import run as run_replicas
        from namm.serving.replicas import Recipe, Scale

        if gpus is None:
            gpus = int(device is not None and device.startswith("cuda"))
        placed = {"device_map": "auto"} if gpus > 1 else {"device": device or ("cuda" if gpus else None)}
        path = local_path(model)  # which every replica finds from wherever it runs
        source = model if path is None else str(path.resolve())
        settings = settings.on("cuda" if gpus else "cpu", piece)
        recipe = Recipe(source, folder.resolve(), rule, served, settings, dtype.value, placed, bits)
        run_replicas(recipe, Scale(replicas or 1, max_replicas, ongoing, cpus, gpus), host, port, ray or LOCAL, ready)
        return
    network, tokenizer = common.load(model, dtype, device)
    documents = Documents(folder, network, tokenizer)
    if documents.passed_over:
        count = documents.passed_over
        errors.print(
            f"{count} documents in {folder} are damaged or of another model, and are left alone", soft_wrap=True
        )
    settings = settings.on(network.device.type, piece)
    app = create_app(network, tokenizer, rule, documents, settings, name=served, bits=bits)
    run(app, host, port, ready)
