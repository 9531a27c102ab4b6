"""Content of an open page of the dashboard at a moment, and the interface of its parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from dask_onnx.cluster.page_facts import PAGE_NAME, PageFacts, page_facts, rates_of

_RATE_SECONDS = 5.0
"""Seconds that rates are means of."""


class Feed:
    """Facts shown at a moment, shared by the parts of one page.

    Parameters
    ----------
    scheduler : distributed.Scheduler
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.facts = self._facts()
        self.past = [self.facts]
        self.edges: set[tuple[str, str]] = set()

    def read(self) -> None:
        """Look at the scheduler again."""
        self.facts = self._facts()
        # The graph of a run stays when its tasks are forgotten.
        self.edges |= self.facts.edges
        self.past = [each for each in self.past if each.time > self.facts.time - _RATE_SECONDS] + [
            self.facts
        ]

    def _facts(self) -> PageFacts:
        plugin = self.scheduler.plugins.get(PAGE_NAME)
        gone, streams = getattr(plugin, "gone", ()), getattr(plugin, "streams", {})
        return page_facts(self.scheduler, gone, streams.values())

    @property
    def rates(self) -> dict[str, float]:
        """Tasks per second by stage."""
        return rates_of(self.facts, self.past[0])


class OnnxPart(ABC):
    """A part of the page: a model of Bokeh, and how it is brought up to date."""

    root: Any

    @abstractmethod
    def update(self, feed: Feed) -> None:
        """Show what the feed has read."""
