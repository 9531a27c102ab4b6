"""Diagnosis of a cluster: what each side has, what is wrong, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from dask_onnx.cluster.cluster_probe import ClusterAnswers, Side, ask_cluster
from dask_onnx.cluster.current_scheduler import current_client
from dask_onnx.cluster.links import known_link
from dask_onnx.core.errors import ClusterError, Suggestion
from dask_onnx.core.formatting import format_bytes, format_count, format_seconds
from dask_onnx.diagnostics.findings import Finding, without_secrets
from dask_onnx.diagnostics.sections import Column, Section, Table, render_text
from dask_onnx.diagnostics.side_checks import (
    check_answers,
    check_clocks,
    check_links,
    check_plugins,
    check_stores,
    check_threads,
    check_versions,
    check_workers,
)
from dask_onnx.diagnostics.task_checks import check_tasks

_CHECKS: tuple[Callable[[ClusterAnswers], Iterable[Finding]], ...] = (
    check_answers,
    check_versions,
    check_workers,
    check_stores,
    check_clocks,
    check_tasks,
    check_threads,
    check_links,
    check_plugins,
)
_ORDER = ("broken", "note", "ok")


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Findings about a cluster, what is broken first. Printed, it is fit for a bug report.

    Credentials in addresses, values that are named like a secret, and the user's home folder are
    left out of everything that is shown.
    """

    findings: tuple[Finding, ...]
    """Findings, broken things first."""
    answers: ClusterAnswers
    """Answers of each side."""

    @property
    def is_broken(self) -> bool:
        """True if something keeps work from running as it should."""
        return any(finding.level == "broken" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Return the diagnosis as plain values, for JSON, without secrets."""
        plain: dict[str, Any] = _published(
            {
                "is_broken": self.is_broken,
                "findings": [asdict(finding) for finding in self.findings],
                "sides": [_side_as_dict(side) for side in self.answers.sides],
            }
        )
        return plain

    def __str__(self) -> str:
        counts = {level: sum(f.level == level for f in self.findings) for level in _ORDER}
        head = f"{counts['broken']} broken, {format_count(counts['note'], 'note')}"
        lines = [head, "", *map(str, self.findings), "", render_text([_sides_section(self)])]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)


def diagnose(client: Any = None) -> Diagnosis:
    """Find out what is wrong with a cluster: nothing on it is changed, and no model runs.

    Versions on all sides, workers that are paused or silent, stores, clocks, memory limits,
    threads, links, plugins, tasks that no worker may run, tasks that wait for ever, and stragglers.
    Works also where the scheduler or workers lack dask_onnx.

    Parameters
    ----------
    client : distributed.Client, optional
        Client of the cluster; by default the one that Dask would use. Without one, this process and
        its host are diagnosed.

    Returns
    -------
    Diagnosis
        Print it; `is_broken` says whether there is something to be done.

    Raises
    ------
    ClusterError
        The client is asynchronous, or closed.

    Examples
    --------
    >>> print(dx.diagnose(client))
    """
    client = current_client() if client is None else client
    if client is not None and (client.asynchronous or client.status != "running"):
        state = "asynchronous" if client.asynchronous else f"in status {client.status!r}"
        raise ClusterError(
            f"the client is {state}, so that the cluster cannot be asked",
            "connect a synchronous one: distributed.Client(address)",
            option="client",
            suggestions=[Suggestion("client")],
        )
    return diagnosis_of(ask_cluster(client), known_link(client))


def diagnosis_of(answers: ClusterAnswers, link: Any = None) -> Diagnosis:
    """Return the findings about what the sides of a cluster answered.

    Parameters
    ----------
    answers : ClusterAnswers
    link : Link, optional
        Measured link between two workers.
    """
    found = [finding for check in _CHECKS for finding in check(answers)]
    if link is not None:
        cause = (
            f"{format_seconds(link.seconds_per_hop)} a hop and "
            f"{format_bytes(link.bytes_per_second)}/s, as dx.calibrate measured"
        )
        found.append(Finding("ok", "links", "", cause))
    found.sort(key=lambda finding: _ORDER.index(finding.level))
    return Diagnosis(tuple(found), answers)


def _sides_section(diagnosis: Diagnosis) -> Section:
    sides = diagnosis.answers.sides

    def version(side: Side, name: str) -> str:
        return "?" if side.error else side.versions.get(name) or "-"

    columns = [
        Column("process", tuple(without_secrets(side.name) for side in sides), is_text=True),
        *(
            Column(name, tuple(version(side, name) for side in sides), is_text=True)
            for name in ("python", "dask", "distributed", "dask-onnx", "onnxruntime", "lz4")
        ),
        Column("clock", tuple("" if s.error else f"{s.clock_offset:+.3f} s" for s in sides)),
        Column("threads", tuple(str(s.details.get("threads", "")) for s in sides)),
        Column("memory limit", tuple(map(_limit, sides))),
    ]
    return Section("processes", title="processes", table=Table(tuple(columns)))


def _limit(side: Side) -> str:
    limit = side.details.get("memory_limit")
    return format_bytes(limit) if limit else ""


def _side_as_dict(side: Side) -> dict[str, Any]:
    # The details of a scheduler repeat all workers and tasks; what matters of them is a finding.
    details = {
        name: value
        for name, value in side.details.items()
        if name in ("plugins", "states", "threads", "memory_limit", "worker_ttl")
    }
    return {**asdict(side), "details": details}


def _published(value: Any) -> Any:
    """Return plain values with all texts as `without_secrets` returns them."""
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, dict):
        return {_published(key): _published(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_published(each) for each in value]
    return value


def findings_of(diagnosis: Diagnosis, level: str) -> Iterator[Finding]:
    """Yield the findings of one level: "broken", "note" or "ok"."""
    return (finding for finding in diagnosis.findings if finding.level == level)
