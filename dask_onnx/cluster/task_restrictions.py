"""Restrictions of tasks to the workers of their worker groups, over the caller's own ones.

A caller may have restricted a task already, by ``workers=`` or ``resources=``. These restrictions
are kept, and restored when the worker group's restriction ends.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dask_onnx.core.dask_internals import set_other_restrictions
from dask_onnx.core.stage_tasks import Key

if TYPE_CHECKING:
    from distributed import Scheduler

WAITING_RESOURCE = "dask_onnx-worker-group"
"""Resource that no worker has: tasks of a worker group without a worker require it.

Dask keeps them in state "no-worker", and shows the name as the reason.
"""


@dataclass(frozen=True, slots=True)
class Restrictions:
    """Restrictions that the caller gave a task."""

    worker_restrictions: frozenset[str] | None
    """Addresses of workers."""
    host_restrictions: frozenset[str] | None
    """Names of hosts, in addition to the addresses."""
    resource_restrictions: dict[str, float] | None
    """Amounts of resources that a worker must have."""
    is_loose: bool
    """True if other workers may run the task too."""

    @classmethod
    def of(cls, state: Any) -> Restrictions:
        """Copy the restrictions of one of Dask's task states."""
        workers, hosts = state.worker_restrictions, state.host_restrictions
        resources = state.resource_restrictions
        return cls(
            frozenset(workers) if workers else None,
            frozenset(hosts) if hosts else None,
            dict(resources) if resources else None,
            bool(state.loose_restrictions),
        )

    @property
    def is_demand(self) -> bool:
        """True if the caller requires certain workers, rather than preferring them."""
        return self.is_given and not self.is_loose

    @property
    def is_given(self) -> bool:
        """True if there are any restrictions."""
        given = (self.worker_restrictions, self.host_restrictions, self.resource_restrictions)
        return any(given)

    def workers(self, scheduler: Scheduler) -> frozenset[str]:
        """Return the addresses of the workers that satisfy the restrictions.

        Unlike `Scheduler.valid_workers`, this has workers that have joined but do not run yet.
        """
        hosts_by_name = {each.name: each.host for each in scheduler.workers.values()}
        addresses = self.worker_restrictions or ()
        hosts = {hosts_by_name.get(host, host) for host in self.host_restrictions or ()}
        resources = (self.resource_restrictions or {}).items()
        return frozenset(
            worker.address
            for worker in scheduler.workers.values()
            if (not (addresses or hosts) or worker.address in addresses or worker.host in hosts)
            and all(worker.resources.get(name, 0) >= amount for name, amount in resources)
        )


class TaskRestrictions:
    """Restrictions of tasks that replace the caller's for some time."""

    def __init__(self) -> None:
        self._originals: dict[Key, Restrictions] = {}
        """The caller's restrictions of each task that is restricted here."""

    def __contains__(self, key: Key) -> bool:
        return key in self._originals

    def original(self, state: Any) -> Restrictions:
        """Return the restrictions that the caller gave a task."""
        found = self._originals.get(state.key)
        return Restrictions.of(state) if found is None else found

    def demanded_workers(self, scheduler: Scheduler, state: Any) -> frozenset[str] | None:
        """Return the addresses of the workers that the caller requires; None if any will do."""
        original = self.original(state)
        return original.workers(scheduler) if original.is_demand else None

    def restrict(self, scheduler: Scheduler, state: Any, worker: str, *, is_loose: bool) -> None:
        """Restrict a task to one worker; if `is_loose`, others may still take it."""
        original = self._remember(state)
        scheduler.set_restrictions({state.key: {worker}})
        # Hosts would add to the address; resources are still to be reserved on the worker.
        set_other_restrictions(
            state, hosts=None, resources=original.resource_restrictions, is_loose=is_loose
        )

    def prefer(self, scheduler: Scheduler, state: Any, workers: Collection[str]) -> None:
        """Let a task prefer some workers, unless it is restricted already."""
        if Restrictions.of(state).is_given:
            return
        self._remember(state)
        scheduler.set_restrictions({state.key: workers})
        set_other_restrictions(state, hosts=None, resources=None, is_loose=True)

    def hold(self, scheduler: Scheduler, state: Any) -> None:
        """Keep a task from running until it is restricted to a worker, or restored."""
        if state.state == "processing":
            return  # its resources are counted when it ends, and must not change before
        original = self._remember(state)
        resources = {**(original.resource_restrictions or {}), WAITING_RESOURCE: 1.0}
        scheduler.set_restrictions({state.key: original.worker_restrictions})
        set_other_restrictions(
            state, hosts=original.host_restrictions, resources=resources, is_loose=False
        )

    def restore(self, scheduler: Scheduler, state: Any) -> None:
        """Give a task the caller's restrictions back."""
        original = self._originals.pop(state.key, None)
        if original is None:
            return
        scheduler.set_restrictions({state.key: original.worker_restrictions})
        set_other_restrictions(
            state,
            hosts=original.host_restrictions,
            resources=original.resource_restrictions,
            is_loose=original.is_loose,
        )

    def forget(self, key: Key) -> None:
        """Drop what is known of a task that the scheduler has forgotten."""
        self._originals.pop(key, None)

    def _remember(self, state: Any) -> Restrictions:
        return self._originals.setdefault(state.key, Restrictions.of(state))
