"""Weights by gradient: from recorded attention, then from what a memory's own decisions cost."""

from namm.learning.calibrate import calibrate, centre
from namm.learning.distil.record import Sample, record_document
from namm.learning.distil.regression import TrainConfig, train
from namm.learning.distil.run import DistillConfig, distill
from namm.learning.passages import Passage, cut_passages
from namm.learning.refine.learn import RefineConfig
from namm.learning.refine.run import improve
from namm.support.runs import Progress

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
    "train",
]
