"""Weights by gradient: from recorded attention, then from what a memory's own decisions saved."""

from namm.learning.card import Teacher
from namm.learning.distil.record import Recording, record_document
from namm.learning.distil.regression import TrainConfig, centre, train
from namm.learning.distil.run import DistillConfig, distill
from namm.learning.passages import Passage, cut_passages
from namm.learning.refine.regression import RefineConfig
from namm.learning.refine.run import refine_memory

__all__ = [
    "DistillConfig",
    "Passage",
    "Recording",
    "RefineConfig",
    "Teacher",
    "TrainConfig",
    "centre",
    "cut_passages",
    "distill",
    "record_document",
    "refine_memory",
    "train",
]
