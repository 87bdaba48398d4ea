"""Rules of retention, all through the same cache."""

from namm.policies.base import BudgetPolicy, Policy
from namm.policies.expected import ExpectedAttention
from namm.policies.full import Full
from namm.policies.h2o import H2O
from namm.policies.head import Head
from namm.policies.keydiff import KeyDiff
from namm.policies.kvzip import KVzip
from namm.policies.l2 import L2
from namm.policies.namm import NAMMPolicy
from namm.policies.pool import top
from namm.policies.random import Random
from namm.policies.snapkv import SnapKV
from namm.policies.streaming import Streaming
from namm.policies.tova import TOVA

RULES: tuple[type[BudgetPolicy], ...] = (
    Streaming,
    H2O,
    L2,
    TOVA,
    SnapKV,
    KeyDiff,
    ExpectedAttention,
    KVzip,
    Random,
)
BUDGETED: dict[str, type[BudgetPolicy]] = {rule.name: rule for rule in RULES}
"""The hand-designed rules by name; each takes a budget."""

__all__ = [
    "BUDGETED",
    "H2O",
    "L2",
    "TOVA",
    "BudgetPolicy",
    "ExpectedAttention",
    "Full",
    "Head",
    "KVzip",
    "KeyDiff",
    "NAMMPolicy",
    "Policy",
    "Random",
    "SnapKV",
    "Streaming",
    "top",
]
