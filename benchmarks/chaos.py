"""Faults while plans run: is the result still the same, bit for bit, and what does it cost?

    python benchmarks/chaos.py --rounds 500 --output benchmarks/results

A round runs a plan on a cluster of two workers, and breaks something at a random moment: a worker,
both, a host, a link, a disk, a clock; every fourth round has two faults. What a round does follows
from the seed and its number. A round is wrong if a bit of its result differs from that of the
undisturbed run, late if it takes longer than twice the undisturbed run (work can be lost as
late as at its end), plus 60 s, plus the outages of its faults: the time after which Dask gives up a
worker that does not answer, which is 20 s here. The states of the scheduler's tasks are then kept.
A round that has not ended four minutes later hangs.

As root, the scheduler and each worker have a network namespace of their own, whose links are cut,
and a small file system in memory that is filled. With --clock, workers run under libfaketime. A
scheduler is killed in rounds of jobs that are resumed alone: no other plan can survive that.

With --output, the file is written after each round.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from chaos_faults import FAULTS, Fault
from chaos_hosts import Hosts, Network
from chaos_plans import PLANS, Run
from chaos_rounds import Round, schedule_of, summary, tell
from common import write_json
from distributed import Client, SchedulerPlugin

import dask_onnx as dx

MOST_LOST_SECONDS = 60.0
_GRACE_SECONDS = 240.0
"""Time beyond the bound after which a round that has not ended is taken to hang for ever."""
_SETTLE_SECONDS = 20.0
"""Time that the tasks of a finished round have to leave the scheduler."""
_COUNTER = "chaos-task-counter"


class TaskCounter(SchedulerPlugin):
    """Counts how often each task has finished."""

    name = _COUNTER

    def __init__(self) -> None:
        self.finished: Counter[Any] = Counter()

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        if (start, finish) == ("processing", "memory"):
            self.finished[key] += 1


def take_finished(dask_scheduler: Any) -> int:
    """Return how many runs of tasks repeated an earlier one, and start anew."""
    finished = dask_scheduler.plugins["chaos-task-counter"].finished
    repeated = sum(count - 1 for count in finished.values())
    finished.clear()
    return int(repeated)


def task_states(dask_scheduler: Any) -> dict[str, Any]:
    """Return the states of the scheduler's tasks and workers."""
    states: Counter[str] = Counter()
    samples: defaultdict[str, list[str]] = defaultdict(list)
    for key, state in dask_scheduler.tasks.items():
        kind = f"{state.state} {getattr(state.prefix, 'name', '?')}"
        states[kind] += 1
        if len(samples[kind]) < 2:
            samples[kind].append(
                f"{key} on {state.processing_on} of {state.worker_restrictions} "
                f"{state.resource_restrictions} loose={state.loose_restrictions} "
                f"waits for {[str(each.key) for each in list(state.waiting_on or ())[:2]]}"
            )
    workers = {each.address: each.status.name for each in dask_scheduler.workers.values()}
    return {"states": dict(states), "samples": dict(samples), "workers": workers}


def count_tasks(dask_scheduler: Any) -> int:
    """Return the number of tasks but those that keep a delivered model for the next request."""
    names = (task.prefix.name for task in dask_scheduler.tasks.values())
    return sum(name not in ("weights", "model") for name in names)


class Outcome:
    """Result of a request that runs in a thread."""

    def __init__(self, run: Run) -> None:
        self.result: list[np.ndarray] | None = None
        self.error: BaseException | None = None
        self.seconds = 0.0
        self.thread = threading.Thread(target=self._follow, args=(run,), daemon=True)
        self.thread.start()

    def _follow(self, run: Run) -> None:
        began = time.monotonic()
        try:
            self.result = run()
        except BaseException as error:
            self.error = error
        self.seconds = time.monotonic() - began


class Chaos:
    """Rounds on one cluster after the other: one that hangs is replaced."""

    def __init__(self, folder: Path, network: Network | None, seed: int, *, clock: bool) -> None:
        self.folder, self.network, self.seed, self.has_clock = folder, network, seed, clock
        self.hosts: Hosts | None = None
        self.expected: dict[str, list[np.ndarray]] = {}
        self.undisturbed: dict[str, float] = {}
        self.runs: dict[str, Run] = {}
        self.clusters = 0

    def start(self) -> Hosts:
        """Return the cluster; a new one if there is none."""
        if self.hosts is None:
            folder = self.folder / f"cluster{self.clusters}"
            folder.mkdir()
            self.clusters += 1
            self.hosts = Hosts(folder, self.network, has_clock=self.has_clock)
            dx.configure(self.hosts.client)
            self.hosts.client.register_plugin(TaskCounter(), name=_COUNTER)
            self.runs.clear()
        return self.hosts

    def stop(self) -> None:
        if self.network is not None:
            self.network.heal()
        if self.hosts is not None:
            self.hosts.close()
        self.hosts = None

    def run_of(self, plan: str) -> Run:
        """Return the request of a plan on this cluster; run it undisturbed the first time."""
        hosts = self.start()
        if plan not in self.runs:
            folder = hosts.folder / plan.replace(" ", "-")
            folder.mkdir()
            self.runs[plan] = PLANS[plan](hosts.client, folder)
            warm = Outcome(self.runs[plan])  # sessions are built and measurements made
            warm.thread.join(300)
            if plan not in self.expected:
                settle(hosts.client)
                outcome = Outcome(self.runs[plan])
                outcome.thread.join(300)
                if outcome.result is None:
                    raise RuntimeError(f"{plan} fails undisturbed") from outcome.error
                self.expected[plan] = outcome.result
                self.undisturbed[plan] = outcome.seconds
            settle(hosts.client)
        return self.runs[plan]

    def play(self, number: int, plan: str, faults: Sequence[str]) -> Round:
        """Run a plan with faults at random moments."""
        try:
            run, hosts = self.run_of(plan), self.start()
        except RuntimeError as error:  # other plans go on, on another cluster
            self.stop()
            detail = f"{error}: {error.__cause__}"[:2000]
            return Round(number, plan, tuple(faults), "error", 0.0, 0.0, 0.0, -1, detail)
        rng = np.random.default_rng((self.seed, number))
        undisturbed = self.undisturbed[plan]
        found = [FAULTS[name] for name in faults]
        outage = sum(fault.outage for fault in found)
        bound = 2 * undisturbed + MOST_LOST_SECONDS + outage
        hosts.client.run_on_scheduler(take_finished)
        outcome = Outcome(run)
        striker = threading.Thread(
            target=_strike, args=(hosts, found, rng, undisturbed), daemon=True
        )
        striker.start()
        outcome.thread.join(bound)
        states = self._states() if outcome.thread.is_alive() else ""
        outcome.thread.join(_GRACE_SECONDS if states else 0)
        is_over = not outcome.thread.is_alive()
        end, detail = _judge(outcome, self.expected[plan], is_over=is_over)
        repeated = -1
        if states:
            end, detail = "late" if end == "equal" else end, f"{detail} {states}".strip()
        with contextlib.suppress(Exception):  # the scheduler may be what is broken
            repeated = hosts.client.run_on_scheduler(take_finished)
        striker.join(30)
        seconds = outcome.seconds if is_over else bound + _GRACE_SECONDS
        reason = "it hangs" if end == "hang" else ""
        if any(fault.ends_requests for fault in found):
            reason = reason or "the scheduler was killed"
        if not reason and not hosts.heal():
            reason = "workers do not come back"
        if reason or not settle(hosts.client):
            print(f"  new cluster: {reason or 'tasks stay on the scheduler'}", flush=True)
            self.stop()
        lost = max(seconds - undisturbed, 0.0)
        return Round(number, plan, tuple(faults), end, seconds, lost, bound, repeated, detail)

    def _states(self) -> str:
        """Return the states of tasks and workers as JSON, or why they are not known."""
        try:
            return json.dumps(self.start().client.run_on_scheduler(task_states), default=str)
        except Exception as error:  # of any kind: the scheduler may be what is broken
            return f"the scheduler cannot be asked: {error!r}"


def settle(client: Client) -> bool:
    """Wait until the scheduler has forgotten all tasks; return whether it has."""
    until = time.monotonic() + _SETTLE_SECONDS
    while time.monotonic() < until:
        if client.run_on_scheduler(count_tasks) == 0:
            return True
        time.sleep(0.05)
    return False


def _strike(
    hosts: Hosts, faults: Sequence[Fault], rng: np.random.Generator, seconds: float
) -> None:
    """Break the cluster at random moments of an undisturbed run."""
    moments = sorted(rng.uniform(0.1, 0.9, len(faults)) * seconds)
    began = time.monotonic()
    for moment, fault in zip(moments, faults, strict=True):
        time.sleep(max(began + moment - time.monotonic(), 0.0))
        try:
            fault.strike(hosts, rng)
        except Exception:  # a fault that cannot be made is told, and the round goes on
            traceback.print_exc()


def _judge(outcome: Outcome, expected: Sequence[np.ndarray], *, is_over: bool) -> tuple[str, str]:
    if not is_over:
        return "hang", ""
    if outcome.error is not None:
        return "error", f"{type(outcome.error).__name__}: {outcome.error}"[:2000]
    assert outcome.result is not None
    assert all(each.dtype.kind != "O" for each in outcome.result), "objects are not compared"
    is_equal = all(
        one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
        for one, other in zip(outcome.result, expected, strict=True)
    )
    return ("equal", "") if is_equal else ("wrong", "")


def write(arguments: argparse.Namespace, rounds: Sequence[Round]) -> None:
    """Write the figures of the rounds so far, if there is a folder for them."""
    if arguments.output:
        found = {by: summary(rounds, by) for by in ("plan", "fault")}
        every = [dataclasses.asdict(each) for each in rounds]
        write_json(arguments.output, "chaos", {"seed": arguments.seed, **found, "rounds": every})


def play_all(arguments: argparse.Namespace) -> list[Round]:
    facilities: Mapping[str, bool] = {
        "": True,
        "network": bool(arguments.network),
        "clock": arguments.clock,
    }
    usable = [name for name, fault in FAULTS.items() if facilities[fault.needs]]
    faults = [name for name in arguments.faults or usable if name in usable]
    left_out = sorted(set(FAULTS) - set(usable))
    if left_out:
        print(f"left out, for want of root or of --clock: {', '.join(left_out)}")
    network = arguments.network
    rounds: list[Round] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work:
        os.environ["DASK_ONNX__STORE__DIRECTORY"] = str(Path(work) / "store")
        os.environ["DASK_ONNX__PLAN__CALIBRATE"] = "False"
        chaos = Chaos(Path(work), network, arguments.seed, clock=arguments.clock)
        try:
            todo = schedule_of(
                arguments.rounds, arguments.seed, arguments.plans or list(PLANS), faults
            )
            for number, plan, chosen in todo:
                if number < arguments.first:
                    continue
                if arguments.seconds and time.monotonic() - began > arguments.seconds:
                    break
                rounds.append(chaos.play(number, plan, chosen))
                write(arguments, rounds)
                last = rounds[-1]
                elapsed = time.monotonic() - began
                print(
                    f"{elapsed:6.0f} s {number:4} {plan:18} {' + '.join(chosen):45} {last.end:6} "
                    f"{last.seconds:6.1f} s ({last.lost_seconds:.1f} lost), "
                    f"{last.repeated} repeated {last.detail[:1500]}",
                    flush=True,
                )
        except KeyboardInterrupt:
            print("interrupted: figures of the rounds so far")
        finally:
            chaos.stop()
    return rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--seconds", type=float, default=0, help="start no round after these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plans", nargs="+", choices=list(PLANS))
    parser.add_argument("--faults", nargs="+", choices=list(FAULTS))
    parser.add_argument("--clock", action="store_true", help="needs libfaketime")
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--names", type=json.loads, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.names is None and os.geteuid() == 0:
        # The client has to be in the namespace of the scheduler.
        with Network(2) as network:
            names = json.dumps(vars(network))
            inside = ["ip", "netns", "exec", network.hub, sys.executable, __file__]
            sys.exit(subprocess.run([*inside, *sys.argv[1:], "--names", names]).returncode)
    arguments.network = None
    if arguments.names is not None:
        arguments.network = Network.__new__(Network)
        vars(arguments.network).update(arguments.names)
    rounds = play_all(arguments)
    tell(rounds)
    sys.exit(any(each.end != "equal" for each in rounds))


if __name__ == "__main__":
    main()
