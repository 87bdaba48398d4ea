"""First weights by gradient: learn from recorded attention which tokens will still be needed."""

from namm.distillation.calibrate import Passage, calibrate, centre
from namm.distillation.record import Sample, record_document
from namm.distillation.run import DistillConfig, Progress, distill
from namm.distillation.train import TrainConfig, train

__all__ = [
    "DistillConfig",
    "Passage",
    "Progress",
    "Sample",
    "TrainConfig",
    "calibrate",
    "centre",
    "distill",
    "record_document",
    "train",
]
