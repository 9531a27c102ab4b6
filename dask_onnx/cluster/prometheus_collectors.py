"""Collectors of Prometheus for the scheduler and the workers; needs ``prometheus_client``.

Like Dask's own collectors, there is one of each in a process, and it speaks for the server that is
being scraped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import dask
from prometheus_client import REGISTRY
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)

from dask_onnx.cluster.metric_families import (
    FROM_DIGESTS,
    OF_SCHEDULER,
    OF_WORKER,
    Family,
    Histogram,
    Series,
    without_model,
)

_registered: list[Any] = []
"""The collectors of this process, once they are registered."""


class Published(NamedTuple):
    """Metrics of a server at a moment."""

    series: Iterable[Series]
    histograms: Mapping[str, Mapping[Any, Histogram]]
    """Histograms by the name of their family and the values of their labels."""


class Collector:
    """Metrics of stages on the ``/metrics`` of schedulers, or of workers.

    Parameters
    ----------
    subsystem : str
        "scheduler" or "worker".
    families : sequence of Family
        Families that it may publish.
    read : callable
        Returns the metrics of the server that is being scraped; None if it is not configured.
    """

    def __init__(
        self, subsystem: str, families: Sequence[Family], read: Callable[[], Published | None]
    ) -> None:
        self.subsystem, self.families, self.read = subsystem, families, read

    def describe(self) -> Iterable[Any]:
        """Return nothing: what is published depends on what is scraped."""
        return ()

    def collect(self) -> Iterator[Any]:
        """Yield the metrics of the server that is being scraped."""
        published = self.read()
        if published is not None:
            yield from families_of(prefix_of(self.subsystem), self.families, published)


def register(
    scheduler: Callable[[], Published | None], worker: Callable[[], Published | None]
) -> None:
    """Register both collectors in this process, unless they are."""
    if not _registered:
        _registered.append(Collector("scheduler", (*FROM_DIGESTS, *OF_SCHEDULER), scheduler))
        _registered.append(Collector("worker", (*without_model(FROM_DIGESTS), *OF_WORKER), worker))
        for collector in _registered:
            REGISTRY.register(collector)


def prefix_of(subsystem: str) -> str:
    """Return the begin of the names of a subsystem, "scheduler" or "worker"."""
    namespace = dask.config.get("distributed.dashboard.prometheus.namespace")
    return f"{namespace}_onnx_{subsystem}_" if namespace else f"onnx_{subsystem}_"


def families_of(prefix: str, families: Iterable[Family], published: Published) -> Iterator[Any]:
    """Yield families of Prometheus with their values, those without any left out."""
    kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}
    known = {family.name: family for family in families}
    made: dict[str, Any] = {}
    for each in published.series:
        family = known[each.family]
        if each.family not in made:
            name = prefix + family.name
            made[each.family] = kinds[family.kind](name, family.text, labels=family.labels)
        made[each.family].add_metric(each.labels, each.value)
    yield from made.values()
    for name, own in published.histograms.items():
        family = known[name]
        found = HistogramMetricFamily(prefix + name, family.text, labels=family.labels)
        for labels, histogram in own.items():
            found.add_metric(labels, histogram.buckets(), histogram.total)
        if own:
            yield found
