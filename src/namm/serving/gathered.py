"""The metrics of several replicas as one page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

LABEL = "replica"


class Gathered(Collector):
    """Metrics that others have written down, each sample with the name of who has.

    Args:
        pages: as Prometheus reads them, by replica.
    """

    def __init__(self, pages: Mapping[str, str]) -> None:
        self.pages = pages

    def collect(self) -> Iterator[Metric]:
        """See `prometheus_client`."""
        found: dict[str, Metric] = {}
        for replica, page in sorted(self.pages.items()):
            for family in text_string_to_metric_families(page):
                own = found.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    own.add_sample(sample.name, sample.labels | {LABEL: replica}, sample.value)
        yield from found.values()


def gathered(pages: Mapping[str, str]) -> bytes:
    """One page of several."""
    registry = CollectorRegistry()
    registry.register(Gathered(pages))
    return generate_latest(registry)
