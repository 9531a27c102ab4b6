"""Parts of distributed outside its documented interfaces, for those who look at a cluster.

As for `core.dask_internals`, a release of Dask may change any of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

# Groups of tasks are documented as what the dashboard shows, but not how they are made, and the
# states of tasks are listed in prose only.
from distributed.scheduler import ALL_TASK_STATES, TaskGroup, TaskPrefix

# The colour that the dashboard gives to tasks of a name is documented nowhere.
from distributed.utils import color_of

__all__ = [
    "TASK_STATES",
    "PagesError",
    "add_pages",
    "colour_of",
    "dress_page",
    "metrics_of_span",
    "rename_group",
    "scraped_scheduler",
    "scraped_worker",
    "seconds_since_end_of_span",
    "worker_metrics_of",
]


TASK_STATES: tuple[str, ...] = tuple(sorted(ALL_TASK_STATES - {"forgotten"}))
"""States of the tasks that a scheduler knows."""


def colour_of(name: str) -> str:
    """Return the colour, as ``#rrggbb``, of tasks whose keys begin with a name in the dashboard."""
    found: str = color_of(name)
    return found


def worker_metrics_of(scheduler: Any) -> dict[Any, float]:
    """Return a copy of the metrics that all workers of a scheduler have added up so far.

    Its dashboard publishes them as fine performance metrics, but under no documented name. They
    include those of workers that are gone.
    """
    return dict(scheduler.cumulative_worker_metrics)


def metrics_of_span(scheduler: Any, span: str) -> Mapping[Any, float]:
    """Return what all workers have added up for the tasks of a span, without spans inside it.

    `Span.cumulative_worker_metrics` is documented, but adds those inside, which are asked apart.

    Parameters
    ----------
    scheduler : distributed.Scheduler
    span : str
        Identifier of a span of this scheduler.
    """
    found: Mapping[Any, float] = (
        scheduler.extensions["spans"].spans[span]._cumulative_worker_metrics
    )
    return found


def seconds_since_end_of_span(scheduler: Any, span: str) -> float:
    """Return the seconds since all tasks of a span have completed; 0 if some have not.

    The record of a span is documented, but not how to find it by its identifier.
    """
    found = scheduler.extensions["spans"].spans[span]
    return max(time.time() - found.stop, 0.0) if found.done else 0.0


def scraped_scheduler() -> Any | None:
    """Return the scheduler whose ``/metrics`` was asked for last in this process, if any.

    Nothing documented adds collectors to Dask's own, nor tells them which server they are asked
    about. Needs ``prometheus_client``.
    """
    from distributed.http.scheduler.prometheus.core import PrometheusHandler

    collectors = PrometheusHandler._collectors
    return collectors[0].server if collectors else None


def scraped_worker() -> Any | None:
    """Return the worker whose ``/metrics`` was asked for last in this process, if any.

    As for `scraped_scheduler`.
    """
    from distributed.http.worker.prometheus.core import PrometheusHandler

    collector = PrometheusHandler._collector
    return None if collector is None else collector.server


def rename_group(scheduler: Any, state: Any, prefix: str) -> None:
    """Show a task that has not started under another name on the dashboard than its key's.

    The name is that of its group of tasks, which nothing documented changes. Workers and the task
    stream go by the key.
    """
    old = state.group
    name = f"{prefix}-{old.name.rpartition('-')[2]}"
    new = scheduler.task_groups.get(name)
    if new is None:
        if prefix not in scheduler.task_prefixes:
            scheduler.task_prefixes[prefix] = TaskPrefix(prefix)
        new = TaskGroup(name, scheduler.task_prefixes[prefix])
        scheduler.task_groups[name] = new
        new.span_id = old.span_id
        if old.span_id:
            scheduler.extensions["spans"].spans[old.span_id].groups.add(new)
    for counted in (old, old.prefix):
        counted.states[state.state] -= 1
        counted._size -= 1
    new.dependencies |= old.dependencies
    new.add(state)
    if not any(count for kind, count in old.states.items() if kind != "forgotten"):
        old.prefix.remove_group(old)
        scheduler.task_groups.pop(old.name, None)


def run_within(
    client: Any, seconds: float, address: str | None, function: Callable[..., Any], *arguments: Any
) -> Any:
    """Run a function on one worker, or on the scheduler for None, and return its result.

    `Client.run` and `Client.run_on_scheduler` do the same, but wait for ever for one that hangs.

    Raises
    ------
    TimeoutError
        There was no answer within `seconds`; besides, whatever the function raises.
    """
    if address is None:
        return client.sync(client._run_on_scheduler, function, *arguments, callback_timeout=seconds)
    found = client.sync(
        client._run, function, *arguments, workers=[address], callback_timeout=seconds
    )
    return found[address]


class PagesError(Exception):
    """The installed release of distributed or Bokeh has another dashboard than the one known."""


def add_pages(scheduler: Any, page: str, pages: Mapping[str, Callable[..., None]]) -> bool:
    """Add pages to the dashboard of a running scheduler.

    Dask has no way to do so but a preload module, which runs before the dashboard is made.

    Parameters
    ----------
    scheduler : distributed.Scheduler
    page : str
        The page that the dashboard's menu names.
    pages : mapping of str to callable
        Address, such as "/onnx", to a function that fills a document of Bokeh for a scheduler.
        Those that begin with "/individual-" are panels of JupyterLab's extension too.

    Returns
    -------
    bool
        False if the scheduler has no dashboard.

    Raises
    ------
    PagesError
        A part of distributed or Bokeh is not as it was.
    """
    try:
        from bokeh.server.tornado import BokehTornado
        from distributed.dashboard.core import BokehApplication
        from distributed.dashboard.scheduler import template_variables
        from tornado.ioloop import IOLoop
    except ImportError:
        return False
    try:
        application = scheduler.http_application
        known = [each for each in application.applications if isinstance(each, BokehTornado)]
        if not known:
            return False
        if f"/{page}" in known[0].app_paths:
            return True
        variables = template_variables(scheduler)
        own = BokehApplication(
            dict(pages), scheduler, prefix=known[0].prefix, template_variables=variables
        )
        own.initialize(IOLoop.current())
        own.start()
        application.add_application(own)
        # The extension of JupyterLab asks for the addresses of Dask's own application.
        known[0].applications.update(own.applications)
        # All pages share these lists.
        variables["pages"].insert(max(len(variables["pages"]) - 1, 0), page)
        names = sorted(each for each in pages if each.startswith("/individual-"))
        variables["plots"].extend(
            {"url": each.strip("/"), "name": each.partition("-")[2].replace("-", " ").title()}
            for each in names
        )
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise PagesError(f"{type(error).__name__}: {error}") from error
    return True


def dress_page(
    document: Any,
    component: Any,
    milliseconds: int,
    title: str,
    variables: Mapping[str, Any] | None,
) -> None:
    """Give a document the look of Dask's own pages, and update it while it is open.

    Parameters
    ----------
    document : bokeh.document.Document
    component : object
        Has a method `update`, which is called every so many milliseconds, and now.
    variables : mapping or None
        Variables of the template of pages; None for a panel, which has no menu.
    """
    from distributed.dashboard.components import add_periodic_callback
    from distributed.dashboard.components.scheduler import BOKEH_THEME, env

    component.update()
    add_periodic_callback(document, component, milliseconds)
    document.title = title
    document.theme = BOKEH_THEME
    if variables is not None:
        document.template = env.get_template("simple.html")
        document.template_variables.update(variables)
