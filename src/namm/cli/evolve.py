from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from namm.cli import common, options
from namm.cli.console import console, errors, print_json
from namm.cli.progress import Update, stages

if TYPE_CHECKING:
    from torch import Tensor

    from namm.evolution import EvolveConfig, Generation, Outcome
    from namm.evolution.samples import Drawn
    from namm.memory import NAMM


def evolve(
    output: Annotated[Path, typer.Argument(help="Folder for the memory and the journal of the run.")],
    preset: Annotated[str | None, typer.Option(help=f"One of {', '.join(options.PRESETS)}.")] = None,
    config: Annotated[Path | None, typer.Option(help="A .toml file of your own, like the presets.")] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", help="Shipped name, folder, hub id, scratch or scratch-ranking; else as configured."),
    ] = None,
    text: Annotated[list[Path] | None, typer.Option(help="Files or folders to make tasks from; repeatable.")] = None,
    generations: Annotated[int | None, typer.Option(min=1, help="At most so many in each stage.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that score samples; 0: this one.")] = 0,
    ray: Annotated[str | None, typer.Option(help='Address of a Ray cluster, or "local".')] = None,
    resume: Annotated[bool, typer.Option(help="Go on with the run in the folder.")] = False,
    device: options.DeviceOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Evolve a memory on tasks: what it keeps is judged by what the model still answers."""
    from namm.support.extras import require

    require(["cma", "matplotlib", "tensorboard"], "evolve")
    if ray is not None:
        require(["ray"], "ray")
    settings = _settings(preset, config, start, text, generations, seed)
    check_folder(output, resume, [config, *settings.inputs()])

    from namm.evolution import Evolution, read_sources, report, starting_memory
    from namm.evolution.directions import recorded_heads
    from namm.support.files import write_atomically
    from namm.support.fingerprints import model_fingerprint

    memory = starting_memory(settings.start)
    loaded = {name: common.load(name, options.Dtype(settings.dtype), device) for name in settings.models}
    sources = read_sources(settings, {name: tokenizer for name, (_, tokenizer) in loaded.items()})
    own = {name: model_fingerprint(network) for name, (network, _) in loaded.items()}
    scorer = _scorer(settings, memory, loaded, workers, ray, device, own)
    with stages() as update:

        def samples(label: str, done: int, total: int) -> None:
            update("samples", done, total, label)

        def record(one: Drawn) -> list[Tensor]:
            return recorded_heads(*loaded[one.model], memory, one.sample, settings.share(memory))

        reporter = _reporter(settings, update)
        run = Evolution(settings, memory, sources, scorer, output, samples, reporter, models=own, record=record)
        outcome = run.run()
    report.write_events(outcome.history, output / "tensorboard")
    report.plot(outcome, settings, output / "evolution.png")
    texts = ", ".join(settings.text) or "Python's standard library and the packaged demo.txt"
    write_atomically(output / "README.md", report.card(outcome, settings, texts))
    if as_json:
        print_json(_summary(outcome, output))
    else:
        _print_outcome(outcome, settings, output)


def _settings(
    preset: str | None,
    config: Path | None,
    start: str | None,
    text: list[Path] | None,
    generations: int | None,
    seed: int | None,
) -> EvolveConfig:
    from namm.evolution import EvolveConfig, presets, read_config

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


def check_folder(output: Path, resume: bool, inputs: list[str | Path | None]) -> None:
    """Raises ValueError unless the folder is writable, and either new or to be resumed."""
    from namm.support.runs import check_output

    check_output(output, inputs=inputs)
    journal = output / "journal.jsonl"
    if journal.exists() and not resume:
        raise ValueError(f"{output} holds a run already: add --resume to go on with it, or choose another folder")
    if resume and not journal.exists():
        raise ValueError(f"{output} holds no run to resume")
    common.check_writable(output)


def _scorer(
    settings: EvolveConfig,
    memory: NAMM,
    loaded: dict[str, Any],
    workers: int,
    ray: str | None,
    device: str | None,
    own: dict[str, str],
) -> Any:
    from namm.evolution.workers import Setup, in_process, processes, ray_cluster

    if ray is None and not workers:
        return in_process(loaded, memory)
    setup = Setup(own, settings.dtype, device, memory, 1 if workers > 1 else None)
    return ray_cluster(setup, ray) if ray is not None else processes(setup, workers)


def _reporter(settings: EvolveConfig, update: Update) -> Callable[[Generation], None]:
    total, done = sum(stage.generations for stage in settings.stages), 0

    def report(one: Generation) -> None:
        nonlocal done
        done += 1
        note = f"fitness {sum(one.fitness) / len(one.fitness):.3f}, kept {one.kept:.3f}"
        if one.failed:
            note += f", {one.failed} failed"
        if one.validation is not None:
            note += f", validation {one.validation:.3f}"
            errors.print(f"stage {one.stage} generation {one.generation + 1}: {note}", soft_wrap=True)
        update("generations", done, total, note)

    return report


def _summary(outcome: Outcome, folder: Path) -> dict[str, object]:
    tested = {
        name: {"fitness": one.fitness, "score": one.value, "kept": one.kept}
        for name, one in (("start", outcome.start), ("evolved", outcome.final))
    }
    gain, spread = outcome.gain
    return {
        "memory": str(folder),
        "validation": [{"start": first, "best": best} for first, best in outcome.validation],
        "test_samples": len(outcome.final.scores),
        **tested,
        "gain": gain,
        "gain_interval": spread,
    }


def _print_outcome(outcome: Outcome, settings: EvolveConfig, folder: Path) -> None:
    from namm.evolution.objective import of_full_cache

    gain, spread = outcome.gain
    best_known = f"{of_full_cache(settings.metric):g} = full cache"
    for number, (first, best) in enumerate(outcome.validation):
        console.print(f"stage {number}, validation fitness: start {first:.3f}, best mean {best:.3f}")
    console.print(f"{len(outcome.final.scores)} test samples, used for nothing else ({best_known}):")
    for name, tested in (("start", outcome.start), ("evolved", outcome.final)):
        console.print(f"  {name}: fitness {tested.fitness:.3f}, score {tested.value:.3f} at {tested.kept:.3f} kept")
    console.print(f"  difference of the scores {gain:+.3f} ± {spread:.3f} (95%, paired)")
    console.print(f"the memory, its card, evolution.png and tensorboard/ are in {folder}")
