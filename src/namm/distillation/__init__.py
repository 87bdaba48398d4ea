"""Weights by gradient: from recorded attention, then from what a memory's own decisions cost."""

from namm.distillation.calibrate import calibrate, centre
from namm.distillation.improve import improve
from namm.distillation.passages import Passage, cut_passages
from namm.distillation.record import Sample, record_document
from namm.distillation.refining import RefineConfig, refine
from namm.distillation.run import DistillConfig, Progress, distill
from namm.distillation.train import TrainConfig, train

__all__ = [
    "DistillConfig",
    "Passage",
    "Progress",
    "RefineConfig",
    "Sample",
    "TrainConfig",
    "calibrate",
    "centre",
    "cut_passages",
    "distill",
    "improve",
    "record_document",
    "refine",
    "train",
]
