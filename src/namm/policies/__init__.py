"""Rules of retention, all through the same cache."""

from namm.policies.base import BudgetPolicy, Head, Policy
from namm.policies.full import Full
from namm.policies.h2o import H2O
from namm.policies.l2 import L2
from namm.policies.namm import NAMMPolicy
from namm.policies.pool import top
from namm.policies.random import Random
from namm.policies.snapkv import SnapKV
from namm.policies.streaming import Streaming
from namm.policies.tova import TOVA

BUDGETED: dict[str, type[BudgetPolicy]] = {policy.name: policy for policy in (Streaming, H2O, L2, TOVA, SnapKV, Random)}
"""The hand-designed rules by name; each takes a budget."""

__all__ = [
    "BUDGETED",
    "H2O",
    "L2",
    "TOVA",
    "BudgetPolicy",
    "Full",
    "Head",
    "NAMMPolicy",
    "Policy",
    "Random",
    "SnapKV",
    "Streaming",
    "top",
]
