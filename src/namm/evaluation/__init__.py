"""Measuring what a policy keeps, costs and loses."""

from namm.evaluation.comparison import Comparison, compare
from namm.support.statistics import mean_interval
from namm.tasks.answering import Answer, Tail, answer_score, tail_loss

__all__ = ["Answer", "Comparison", "Tail", "answer_score", "compare", "mean_interval", "tail_loss"]
