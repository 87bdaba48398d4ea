from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from namm.cli import common
from namm.cli.common import DeviceOption, console
from namm.evolution import (
    Evolution,
    EvolveConfig,
    Generation,
    Outcome,
    SampleSource,
    presets,
    read_config,
    starting_memory,
)
from namm.memory import NAMM
from namm.support.files import write_atomically
from namm.support.fingerprints import model_fingerprint


def evolve(
    output: Annotated[Path, typer.Argument(help="Folder for the memory and the journal of the run.")],
    preset: Annotated[str | None, typer.Option(help=f"One of {', '.join(presets())}.")] = None,
    config: Annotated[Path | None, typer.Option(help="A .toml file of your own, like the presets.")] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="distilled, scratch, a folder or hub id; else as configured.")
    ] = None,
    text: Annotated[list[Path] | None, typer.Option(help="Files or folders to make tasks from; repeatable.")] = None,
    generations: Annotated[int | None, typer.Option(min=1, help="At most so many in each stage.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that score samples; 0: this one.")] = 0,
    ray: Annotated[str | None, typer.Option(help='Address of a Ray cluster, or "local".')] = None,
    resume: Annotated[bool, typer.Option(help="Go on with the run in the folder.")] = False,
    device: DeviceOption = None,
) -> None:
    """Evolve a memory on tasks: what it keeps is judged by what the model still answers."""
    with common.one_clear_error():
        settings = _settings(preset, config, start, text, generations, seed)
        folder = claim_folder(output, resume)
        from namm.evolution import report  # heavy, and needs the extra

        _need_extra()
        memory = starting_memory(settings.start)
        network, tokenizer = common.load(settings.model, settings.dtype, device)
        source = SampleSource.read(settings, tokenizer)
        scorer = _scorer(settings, memory, network, tokenizer, workers, ray, device)
        with _Bars(settings) as bars:
            own = model_fingerprint(network)
            run = Evolution(settings, memory, source, scorer, folder, bars.samples, bars.generation, model=own)
            outcome = run.run()
        report.write_events(outcome.history, folder / "tensorboard")
        report.plot(outcome, settings, folder / "evolution.png")
        texts = ", ".join(settings.text) or "Python's standard library and the packaged demo.txt"
        write_atomically(folder / "README.md", report.card(outcome, settings, texts))
        _print_outcome(outcome, folder)


def _settings(
    preset: str | None,
    config: Path | None,
    start: str | None,
    text: list[Path] | None,
    generations: int | None,
    seed: int | None,
) -> EvolveConfig:
    if (preset is None) == (config is None):
        raise ValueError(f"give either --preset ({', '.join(presets())}) or --config FILE.toml")
    if preset is not None and preset not in presets():
        raise ValueError(f"no preset {preset!r}: choose {', '.join(presets())}")
    settings = read_config(preset or str(config))
    changes: dict[str, Any] = {}
    if start is not None:
        changes["start"] = EvolveConfig.start if start == "distilled" else start
    if text:
        changes["text"] = tuple(map(str, text))
    if seed is not None:
        changes["seed"] = seed
    if generations is not None:
        settings = settings.at_most(generations)
    return replace(settings, **changes)


def claim_folder(output: Path, resume: bool) -> Path:
    """The folder of a run, writable and either new or to be resumed."""
    journal = output / "journal.jsonl"
    if journal.exists() and not resume:
        raise ValueError(f"{output} holds a run already: add --resume to go on with it, or choose another folder")
    if resume and not journal.exists():
        raise ValueError(f"{output} holds no run to resume")
    return common.writable_folder(output)


def _need_extra() -> None:
    try:
        import cma  # noqa: F401
        import matplotlib  # noqa: F401
        import tensorboard  # noqa: F401
    except ImportError as error:
        raise ValueError(f"evolution needs the package {error.name}: pip install 'namm[evolve]'") from None


def _scorer(
    settings: EvolveConfig,
    memory: NAMM,
    network: Any,
    tokenizer: Any,
    workers: int,
    ray: str | None,
    device: str | None,
) -> Any:
    from namm.evolution.workers import Setup, in_process, processes, ray_cluster

    if ray is None and not workers:
        return in_process(network, tokenizer, memory)
    own, threads = model_fingerprint(network), 1 if workers > 1 else None
    setup = Setup(settings.model, settings.dtype, device, memory, threads, fingerprint=own)
    return ray_cluster(setup, ray) if ray is not None else processes(setup, workers)


class _Bars:
    """One bar for the generations with the time left, one for the samples of the present one."""

    def __init__(self, settings: EvolveConfig) -> None:
        self._progress = common.progress_bars()
        total = sum(stage.generations for stage in settings.stages)
        self._generations = self._progress.add_task("generations", total=total, note="")
        self._samples = self._progress.add_task("samples", total=None, note="")

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def samples(self, label: str, done: int, total: int) -> None:
        self._progress.update(self._samples, completed=done, total=total, note=label)

    def generation(self, done: Generation) -> None:
        mean = sum(done.fitness) / len(done.fitness)
        note = f"fitness {mean:.3f}, kept {done.kept:.3f}"
        if done.failed:
            note += f", {done.failed} failed"
        if done.validation is not None:
            note += f", validation {done.validation:.3f}"
        self._progress.update(self._generations, advance=1, note=note)
        if done.validation is not None:
            self._progress.print(f"stage {done.stage} generation {done.generation + 1}: {note}", highlight=False)


def _print_outcome(outcome: Outcome, folder: Path) -> None:
    gain, spread = outcome.gain
    for number, (first, best) in enumerate(outcome.validation):
        line = f"stage {number}, validation fitness: start {first:.3f}, best mean {best:.3f}"
        console.print(line, highlight=False)
    console.print(f"{len(outcome.final.scores)} test samples, used for nothing else (1 = full cache):")
    for name, tested in (("start", outcome.start), ("evolved", outcome.final)):
        line = f"  {name}: fitness {tested.fitness:.3f}, score {tested.value:.3f} at {tested.kept:.3f} kept"
        console.print(line, highlight=False)
    console.print(f"  difference of the scores {gain:+.3f} ± {spread:.3f} (95%, paired)", highlight=False)
    console.print(f"the memory, its card, evolution.png and tensorboard/ are in {escape(str(folder))}", highlight=False)
