"""Weights by gradient: from recorded attention, from what a memory's own decisions saved, and the model's under it."""

from namm.learning.card import Teacher
from namm.learning.distil.record import Recording, record_document
from namm.learning.distil.regression import TrainConfig, centre, train
from namm.learning.distil.run import DistillConfig, distill
from namm.learning.passages import Passage, cut_passages
from namm.learning.refine.regression import RefineConfig
from namm.learning.refine.run import refine_memory
from namm.learning.tuning.config import TuneConfig
from namm.learning.tuning.run import tune
from namm.learning.tuning.texts import Text, asked_texts, plain_text

__all__ = [
    "DistillConfig",
    "Passage",
    "Recording",
    "RefineConfig",
    "Teacher",
    "Text",
    "TrainConfig",
    "TuneConfig",
    "asked_texts",
    "centre",
    "cut_passages",
    "distill",
    "plain_text",
    "record_document",
    "refine_memory",
    "train",
    "tune",
]
