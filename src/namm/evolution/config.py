"""One evolution in one file: stages, tasks and search, as TOML."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

from namm.evolution.objective import OBJECTIVES
from namm.evolution.space import DIRECTIONS, SPACES, STARTS, WAY
from namm.evolution.strategy import STRATEGIES
from namm.memory import NAMM
from namm.models.load import local_path
from namm.tasks.metrics import LIKELIHOOD
from namm.tasks.registry import check_task
from namm.tasks.rows import read_utf8


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum; it starts from the best mean of the stage before.

    Attributes:
        tasks: names of `namm.tasks.GENERATORS`, or ``longbench:FILE.jsonl``; fitness is the mean over them.
        tokens: lengths of the contexts, taken in turn.
        samples: of each task in a generation, the same for the whole population.
        generations: at most so many.
    """

    tasks: tuple[str, ...]
    tokens: tuple[int, ...] = (768,)
    samples: int = 4
    generations: int = 10

    def __post_init__(self) -> None:
        for name in ("tasks", "tokens"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for task in self.tasks:
            check_task(task)
        if not self.tasks or not self.tokens or min(self.tokens) < 1 or self.samples < 1 or self.generations < 1:
            raise ValueError(f"a stage needs tasks, and positive tokens, samples and generations; got {self}")


@dataclass(frozen=True)
class EvolveConfig:
    """How a memory is evolved.

    Attributes:
        stages: see `Stage`.
        models: the frozen models, see `namm.load_model`; fitness is the mean over them.
        dtype: of their weights.
        start: a memory (shipped name, folder or hub id), ``"scratch"`` or ``"scratch-ranking"``, see
            `namm.evolution.space`.
        parameters: what evolves: ``"all"``, ``"scorer"`` or ``"gains"``, see `namm.evolution.space`; or
            ``"directions"``, few and strong ones, or ``"way"``, see `namm.evolution.directions`.
        towards: another memory (as `start`), the way to which gives directions; empty: the start's own matrices do.
        strategy: ``"cma"``, ``"cma-separable"``, ``"snes"`` or ``"random"``. population, sigma: of it.
        rounds: parts of a generation's samples, after each of which the worse half of the candidates is dropped; 1:
            all see all.
        metric: ``"nats"`` or ``"likelihood"`` of the reference answer, see `namm.evolution.fitness.Score`, or a metric
            of the generated one: ``"exact"``, ``"f1"``.
        kept: fraction to keep. From a start that keeps a fraction by itself (``config.kept``), every member keeps this
            one, and its scores count relative to one another only; from any other start, members keep what they score
            at least 0, as in the paper, and pay for what is above it.
        price: fitness lost for each unit kept above it.
        tolerance: nats a token by which the loss of running text may rise more than under the start; what goes beyond
            is charged steeply. For the metric ``"nats"``, where ``"continuation"`` is among the tasks.
        validation: samples of each task by which the best mean is chosen.
        validate_every: generations between.
        patience: validations without a better one before a stage ends early; 0: never.
        test: samples of each task for the last comparison with the start, used for nothing else.
        text: files and folders to make samples from; none: Python's standard library and the packaged prose.
        seed: of everything random.
    """

    stages: tuple[Stage, ...]
    models: tuple[str, ...] = ("smollm2-135m",)
    dtype: str = "auto"
    start: str = "universal"
    parameters: str = "all"
    towards: str = ""
    strategy: str = "cma"
    population: int = 32
    sigma: float = 0.065
    rounds: int = 1
    metric: str = LIKELIHOOD
    kept: float = 0.25
    price: float = 1.0
    tolerance: float = 0.01
    validation: int = 8
    validate_every: int = 2
    patience: int = 0
    test: int = 8
    text: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("stages", "models", "text"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        choices = {"parameters": (*SPACES, DIRECTIONS, WAY), "strategy": STRATEGIES, "metric": OBJECTIVES}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} = {getattr(self, name)!r}: choose {', '.join(allowed)}")
        if not self.stages:
            raise ValueError("an evolution needs at least one [[stages]]")
        if not self.models or len(set(self.models)) < len(self.models):
            raise ValueError(f"models = {list(self.models)}: name at least one, and each once")
        if self.towards and self.parameters not in (DIRECTIONS, WAY):
            raise ValueError(f"towards = {self.towards!r} is for parameters = {DIRECTIONS!r} or {WAY!r} only")
        if self.parameters == WAY and not self.towards:
            raise ValueError(f"parameters = {WAY!r} needs towards, the memory to which it leads")
        if self.population < 2:
            raise ValueError(f"a population of {self.population} can't be compared; it must be at least 2")
        if not 1 <= self.rounds <= min(stage.samples for stage in self.stages):
            raise ValueError(f"rounds = {self.rounds}: there must be at least 1, and a sample of every task for each")
        if not (self.sigma > 0 and 0 < self.kept <= 1 and self.price >= 0 and self.tolerance >= 0):
            raise ValueError("sigma must be positive, kept between 0 and 1, price and tolerance not negative")
        if min(self.validation, self.validate_every, self.test) < 1 or self.patience < 0:
            raise ValueError("validation, validate_every and test must be at least 1, patience at least 0")
        if self.seed < 0:
            raise ValueError(f"seed = {self.seed}: a seed is 0 or more")

    def inputs(self) -> list[str | Path | None]:
        """Files and folders that a run reads."""
        tasks = {task for stage in self.stages for task in stage.tasks}
        files = [task.removeprefix("longbench:") for task in tasks if task.startswith("longbench:")]
        start = None if self.start in STARTS else self.start
        return [*self.text, *files, start, self.towards or None, *map(local_path, self.models)]

    def share(self, start: NAMM) -> float | None:
        """The fraction that every candidate from a start keeps; None: each keeps what it scores at least 0."""
        return None if start.config.kept is None else self.kept

    def at_most(self, generations: int) -> EvolveConfig:
        """The same with at most so many generations in each stage."""
        stages = (replace(stage, generations=min(generations, stage.generations)) for stage in self.stages)
        return replace(self, stages=tuple(stages))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def presets() -> list[str]:
    """Names of the configurations inside the package."""
    folder = resources.files("namm") / "evolution" / "presets"
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def read_config(source: str | Path) -> EvolveConfig:
    """A preset by its name, or a TOML file.

    Raises:
        ValueError: naming the key that is unknown, or the value that does not fit.
        FileNotFoundError: if there is neither.
    """
    if str(source) in presets():
        text = (resources.files("namm") / "evolution" / "presets" / f"{source}.toml").read_text(encoding="utf-8")
    elif Path(source).is_file():
        text = read_utf8(Path(source))
    else:
        raise FileNotFoundError(f"no configuration {str(source)!r}: give a .toml file or one of {', '.join(presets())}")
    try:
        values = tomllib.loads(text)
        found = values.pop("stages", [])
        if not isinstance(found, list) or not all(isinstance(stage, dict) for stage in found):
            raise ValueError("stages must be tables, each under [[stages]]")
        stages = tuple(_build(Stage, stage, "[[stages]]") for stage in found)
        return _build(EvolveConfig, values | {"stages": stages}, "the configuration")
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{source}: {error}") from error


def _build(kind: type[Any], values: Mapping[str, Any], where: str) -> Any:
    known = {field.name: field.type for field in fields(kind)}
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise ValueError(f"{where} has no key {key!r}{f'; did you mean {near[0]!r}?' if near else ''}")
    for key, value in values.items():
        kinds: Any = {"int": int, "float": (int, float), "str": str}.get(str(known[key]), object)
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not object):
            raise ValueError(f"{key} = {value!r} in {where} must be of type {known[key]}")
        if str(known[key]).startswith("tuple"):
            element: Any = {"tuple[int, ...]": int, "tuple[str, ...]": str}.get(str(known[key]), object)
            if not isinstance(value, list | tuple) or not all(
                isinstance(each, element) and not isinstance(each, bool) for each in value
            ):
                raise ValueError(f"{key} = {value!r} in {where} must be a list ({known[key]})")
    return kind(**values)
