"""Every metric of an evaluation by its name: those of the tasks, and of the benchmarks that have their own."""

from __future__ import annotations

from collections.abc import Mapping

from namm.evaluation.benchmarks.choubun_metrics import CHOUBUN_METRICS
from namm.evaluation.benchmarks.infinitebench_metrics import INFINITEBENCH_METRICS
from namm.evaluation.benchmarks.leval_metrics import LEVAL_METRICS
from namm.tasks.metrics import METRICS as COMMON_METRICS
from namm.tasks.scoring import Metric

METRICS: Mapping[str, Metric] = {**COMMON_METRICS, **CHOUBUN_METRICS, **INFINITEBENCH_METRICS, **LEVAL_METRICS}
