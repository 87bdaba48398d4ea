"""Evolution: a memory for what it is for, the frozen model's results under eviction (paper, section 4)."""

from namm.evolution.config import EvolveConfig, Stage, presets, read_config
from namm.evolution.outcome import Generation, Outcome
from namm.evolution.run import Evolution
from namm.evolution.samples import SampleSource, read_sources
from namm.evolution.space import starting_memory

__all__ = [
    "Evolution",
    "EvolveConfig",
    "Generation",
    "Outcome",
    "SampleSource",
    "Stage",
    "presets",
    "read_config",
    "read_sources",
    "starting_memory",
]
