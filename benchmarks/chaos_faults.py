"""Faults of `chaos`, each a function of the hosts and a seeded generator of random numbers."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from chaos_hosts import TTL_SECONDS, Hosts

Strike = Callable[[Hosts, np.random.Generator], None]


@dataclass(frozen=True, slots=True)
class Fault:
    """A way to break a cluster."""

    strike: Strike
    """Breaks it; returns when nothing more happens until it is healed."""
    outage: float = 0.0
    """Seconds that nobody can work around: until a worker that hangs is given up."""
    needs: str = ""
    """Facility that it needs: "network" (root), "clock" (libfaketime), or nothing."""
    loses_host: bool = False
    """True if a host of the two is gone for good."""
    ends_requests: bool = False
    """True if requests end with an error, so that only a job that is resumed survives it."""


def _kill(pids: list[int], number: int = signal.SIGKILL) -> None:
    for pid in pids:
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def _any(hosts: Hosts, rng: np.random.Generator) -> int:
    return int(rng.integers(hosts.workers))


def kill_one(hosts: Hosts, rng: np.random.Generator) -> None:
    _kill([hosts.worker_pids()[_any(hosts, rng)]])


def kill_all(hosts: Hosts, rng: np.random.Generator) -> None:
    _kill(hosts.worker_pids())


def kill_two(hosts: Hosts, rng: np.random.Generator) -> None:
    """Kill the workers 0.2 s apart."""
    for pid in hosts.worker_pids():
        _kill([pid])
        time.sleep(0.2)


def lose_host(hosts: Hosts, rng: np.random.Generator) -> None:
    """Kill a worker with its nanny, so that nothing brings it back."""
    number = _any(hosts, rng)
    nanny = hosts.nannies[number]
    _kill([0 if nanny is None else nanny.pid, hosts.worker_pids()[number]])


def pause(hosts: Hosts, rng: np.random.Generator) -> None:
    """SIGSTOP for one to four seconds."""
    pids = [hosts.worker_pids()[_any(hosts, rng)]]
    _kill(pids, signal.SIGSTOP)
    time.sleep(rng.uniform(1, 4))
    _kill(pids, signal.SIGCONT)


def hang(hosts: Hosts, rng: np.random.Generator) -> None:
    """SIGSTOP without SIGCONT."""
    _kill([hosts.worker_pids()[_any(hosts, rng)]], signal.SIGSTOP)


def cut(hosts: Hosts, rng: np.random.Generator) -> None:
    """Take a host's link away for one to four seconds."""
    assert hosts.network is not None
    number = _any(hosts, rng)
    hosts.network.set_link(number, "down")
    time.sleep(rng.uniform(1, 4))
    hosts.network.set_link(number, "up")


def unplug(hosts: Hosts, rng: np.random.Generator) -> None:
    """Take a host's link away for good."""
    assert hosts.network is not None
    hosts.network.set_link(_any(hosts, rng), "down")


def slow(hosts: Hosts, rng: np.random.Generator) -> None:
    assert hosts.network is not None
    hosts.network.slow(_any(hosts, rng))


def fill_disk(hosts: Hosts, rng: np.random.Generator) -> None:
    """Fill the disk of a host, where its worker's scratch folder and store are."""
    path = hosts.disks[_any(hosts, rng)] / "filler"
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**20))


def kill_scheduler(hosts: Hosts, rng: np.random.Generator) -> None:
    """Kill the scheduler, and start another one at its address with new workers."""
    hosts.replace_scheduler()


def jump_clock(hosts: Hosts, rng: np.random.Generator) -> None:
    """Set the clock of a host an hour ahead or back."""
    disk = hosts.disks[_any(hosts, rng)]
    (disk.parent / f"{disk.name}.clock").write_text(f"{rng.choice(['+', '-'])}3600s\n")


FAULTS = {
    "kill -9": Fault(kill_one),
    "kill -9 all": Fault(kill_all),
    "kill -9 two, 0.2 s apart": Fault(kill_two),
    "host lost": Fault(lose_host, loses_host=True),
    "SIGSTOP, SIGCONT": Fault(pause),
    "SIGSTOP": Fault(hang, outage=2 * TTL_SECONDS),
    "cut": Fault(cut, needs="network"),
    "cut for good": Fault(unplug, outage=2 * TTL_SECONDS, needs="network", loses_host=True),
    "slow link": Fault(slow, outage=30, needs="network"),
    "full disk": Fault(fill_disk, needs="network"),
    "scheduler": Fault(kill_scheduler, outage=60, ends_requests=True),
    "clock": Fault(jump_clock, needs="clock"),
}
"""Faults by the name that tables show."""
