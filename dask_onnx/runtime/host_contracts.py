"""Results that kernels must show on a host before it runs a stage: those of the client.

Workers are asked before work (`facts.host_checks`). One that joins later is held to the same here,
in its first task, since texts that it maps by another locale would be other results without an
error.
"""

from __future__ import annotations

from dataclasses import dataclass

from dask_onnx.core.errors import StageError
from dask_onnx.core.process_caches import BoundedCache
from dask_onnx.runtime.host_needs import HostAnswer, HostNeed, ask_host


@dataclass(frozen=True, slots=True)
class HostContract:
    """Needs whose results differ from host to host, and what they show where the plan was made."""

    needs: tuple[HostNeed, ...]
    """Nodes that map texts."""
    shows: tuple[tuple[str, ...], ...]
    """Results of each need."""


_answers: BoundedCache[tuple[bytes, ...], tuple[HostAnswer, ...]] = BoundedCache(
    "answers of this host", 64
)
"""Answers of this process to the needs of contracts."""


def check_contract(contract: HostContract | None, label: str) -> None:
    """Raise an error unless this host maps texts as the one where the plan was made.

    Parameters
    ----------
    contract : HostContract or None
        None where the model needs nothing of its hosts.
    label : str
        Label of the stage, for the error.

    Raises
    ------
    StageError
        It lacks something, or gives other results.
    """
    if contract is None:
        return
    key = tuple(need.proto for need in contract.needs)
    answers = _answers.get_or_make(key, lambda: ask_host(contract.needs))
    for need, shows, answer in zip(contract.needs, contract.shows, answers, strict=True):
        if answer.lacks or answer.shows != shows:
            reason = answer.lacks or "it maps letters as another locale does"
            raise StageError(
                f"stage {label}: this host cannot run what node {need.node!r} ({need.text}) needs: "
                f"{reason}",
                need.remedy,
                stage=label,
                node=need.node,
                reason=reason,
            )
