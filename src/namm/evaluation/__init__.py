"""Measuring what a policy keeps, costs and loses."""

from namm.evaluation.comparison import Comparison, compare
from namm.evaluation.measure import Answer, Tail, answer_score, tail_loss
from namm.support.statistics import mean_interval

__all__ = ["Answer", "Comparison", "Tail", "answer_score", "compare", "mean_interval", "tail_loss"]
