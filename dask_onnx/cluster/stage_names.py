"""Names under which the tasks of stages are shown and counted: their stages and models.

Workers meter a task under the prefix of its key, which tells neither the model nor, where Dask has
fused the task with those that follow, the stage. Models of one exporter often share such prefixes.
But Dask adds up the meters of each span too, and a new span begins as soon as all work is done. So
the tasks of one span that share a prefix nearly always belong to one stage.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from dask.utils import key_split

from dask_onnx.core.dashboard_internals import (
    metrics_of_span,
    rename_group,
    seconds_since_end_of_span,
    worker_metrics_of,
)
from dask_onnx.core.stage_tasks import Hints

SEVERAL_MODELS = "several models"
"""Shown instead of a model's name where models share the name of a stage."""
_MOST_NAMES = 10_000
"""Stages whose names are kept."""
_MOST_SPANS = 1000
"""Spans whose meters are looked at for each scrape, unless more are at work."""
_LATE_SECONDS = 60.0
"""Seconds after the end of a span in which heartbeats may still bring its meters."""
_ROUNDING = 1e-6
"""Difference of two sums of seconds that is taken for an error of rounding."""


class ShownStage(NamedTuple):
    """Stage and model of some tasks, as the dashboard and metrics name them."""

    stage: str
    """Name of the group of tasks on the dashboard."""
    model: str
    """Name of the model; empty if it is not known which of several."""


Meter = tuple[str, str, str]
"""Prefix of keys, label and unit of what workers add up."""


class StageNames:
    """Stages and models of the groups of tasks of a scheduler."""

    def __init__(self) -> None:
        self.models: dict[str, str] = {}
        """Name of a group of tasks on the dashboard to the name of its model, or to
        `SEVERAL_MODELS`.
        """
        self.stages: dict[ShownStage, None] = {}
        """All stages that were ever noted, in order."""
        self._groups: dict[str, ShownStage] = {}
        """Stage of each of Dask's groups of tasks; some of them may be gone."""
        self._most_groups = _MOST_NAMES
        """Number of groups above which those that are gone are left out."""
        self._spans: dict[str, dict[str, ShownStage]] = {}
        """Stage of the tasks of each span, by the prefix of their keys."""
        self._most_spans = _MOST_SPANS
        """Number of spans above which those that are over are added up."""
        self._settled: defaultdict[tuple[ShownStage, Meter], float] = defaultdict(float)
        """Meters of spans that are over."""
        self._settled_spans: set[str] = set()
        """Those spans: a task that is repeated later must not count all of its span again."""

    def note(self, scheduler: Any, state: Any, hints: Hints) -> None:
        """Note the stage of a task, and show the task under its label.

        Where Dask has fused a stage with tasks that follow, its task has the key of the last one: a
        model before ``.sum()`` would be found as "sum".

        Parameters
        ----------
        scheduler : distributed.Scheduler
        state : TaskState
            Task of a stage.
        hints : Hints
            Hints of its last stage.
        """
        label, shown = hints.stage, state.prefix.name
        if label and state.state == "released" and f"-{label}-" not in f"-{shown}-":
            rename_group(scheduler, state, f"{label}-{shown}")
        found = ShownStage(state.prefix.name, hints.model)
        if not hints.model or (found not in self.stages and len(self.stages) >= _MOST_NAMES):
            return
        self.stages[found] = None
        if self.models.setdefault(found.stage, found.model) != found.model:
            self.models[found.stage] = SEVERAL_MODELS
        if self._groups.get(state.group.name) != found:
            self._note_group(scheduler, state.group, found)
        span = state.group.span_id
        if span is None or span in self._settled_spans:
            return
        if span not in self._spans:
            self._settle(scheduler)
        own = self._spans.setdefault(span, {})
        prefix = key_split(state.key)
        own[prefix] = _common(prefix, own.get(prefix, found), found)

    def of_group(self, name: str) -> ShownStage | None:
        """Return the stage of one of Dask's groups of tasks; None for other tasks."""
        return self._groups.get(name)

    def metrics(self, scheduler: Any) -> Iterator[tuple[Any, float]]:
        """Yield what all workers have added up, by stage and model where they tell prefixes.

        Yields
        ------
        key : tuple
            As in `dashboard_internals.worker_metrics_of`. In those of tasks ("execute", prefix,
            label, unit) the prefix is replaced by a `ShownStage`. A key may come several times.
        value : float
            Seconds, bytes or a count.
        """
        found = defaultdict(float, self._settled)
        for meter, value in self._meters_of_spans(scheduler, self._spans):
            found[meter] += value
        rest: dict[Meter, float] = {}
        for key, value in worker_metrics_of(scheduler).items():
            if isinstance(key, tuple) and len(key) == 4 and key[0] == "execute":
                rest[key[1:]] = value
            else:
                yield key, value
        for (stage, (prefix, label, unit)), value in found.items():
            rest[prefix, label, unit] = rest.get((prefix, label, unit), 0.0) - value
            yield ("execute", stage, label, unit), value
        # Of tasks that are no stages, or that ran before they were noted.
        for (prefix, label, unit), value in rest.items():
            if value > _ROUNDING:
                yield ("execute", ShownStage(prefix, ""), label, unit), value

    def _note_group(self, scheduler: Any, group: Any, found: ShownStage) -> None:
        if len(self._groups) >= self._most_groups:
            known = self._groups.items()
            self._groups = {name: e for name, e in known if name in scheduler.task_groups}
            self._most_groups = max(_MOST_NAMES, 2 * len(self._groups))
        self._groups[group.name] = found

    def _settle(self, scheduler: Any) -> None:
        """Add up the meters of spans that are over, if there are many spans."""
        if len(self._spans) < self._most_spans:
            return
        over = [e for e in self._spans if seconds_since_end_of_span(scheduler, e) > _LATE_SECONDS]
        for meter, value in self._meters_of_spans(scheduler, over):
            self._settled[meter] += value
        for each in over:
            del self._spans[each]
        self._settled_spans.update(over)
        self._most_spans = max(_MOST_SPANS, 2 * len(self._spans))

    def _meters_of_spans(
        self, scheduler: Any, spans: Iterable[str]
    ) -> Iterator[tuple[tuple[ShownStage, Meter], float]]:
        for each in spans:
            known: Mapping[str, ShownStage] = self._spans[each]
            for key, value in metrics_of_span(scheduler, each).items():
                if len(key) == 4 and key[0] == "execute" and key[1] in known:
                    yield (known[key[1]], key[1:]), value


def _common(prefix: str, one: ShownStage, other: ShownStage) -> ShownStage:
    """Return what two stages that share a prefix in a span have in common."""
    return ShownStage(
        one.stage if one.stage == other.stage else prefix,
        one.model if one.model == other.model else "",
    )
