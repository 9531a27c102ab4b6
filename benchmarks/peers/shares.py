"""CPU seconds of a warm run of each peer, by kind of thread, and seconds of idle cores.

    .venv-peers/bin/python benchmarks/peers/shares.py --assets .cache/assets
    .venv-peers/bin/python benchmarks/peers/shares.py --assets .cache/assets --job large

For each peer: seconds of a warm run; CPU seconds of the threads that compute, of the event loops of
workers, and of the process that asked (client and scheduler); seconds for which a thread was ready
and no core free; and for which cores were idle.
Linux only: the numbers are those of ``/proc/PID/task/TID/schedstat``.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import print_table, write_json
from jobs import FULL, MAKERS
from peer_process import PeerProcess
from run import NAMES

_TICKS = os.sysconf("SC_CLK_TCK")
_ON_DASK = ("ours", "ours_array", "ours_files", "by_hand", "dask_ml")
_KINDS = ("computing threads", "event loops of workers", "client and scheduler")


def used(
    processes: Sequence[psutil.Process], has_loops: bool
) -> dict[tuple[int, int], tuple[str, float, float]]:
    """Return kind, CPU seconds and seconds of waiting for a core of each thread.

    The first process is the client's. Where workers have event loops, these are their main threads.
    """
    found = {}
    for process in processes:
        try:
            for thread in process.threads():
                text = Path(f"/proc/{process.pid}/task/{thread.id}/schedstat").read_text()
                run, waited, _ = (int(number) / 1e9 for number in text.split())
                kind = "computing threads"
                if process is processes[0]:
                    kind = "client and scheduler"
                elif has_loops and thread.id == process.pid:
                    kind = "event loops of workers"
                found[process.pid, thread.id] = kind, run, waited
        except (psutil.NoSuchProcess, OSError):
            continue
    return found


def idle_and_system() -> tuple[float, float]:
    """Return the seconds of all cores that were idle, and in the kernel."""
    _, _, _, system, idle, *_ = Path("/proc/stat").read_text().splitlines()[0].split()
    return int(idle) / _TICKS, int(system) / _TICKS


def shares_of_run(peer: PeerProcess, has_loops: bool) -> dict[str, float]:
    """Run the job once, and return its seconds and what they consist of."""
    before, (idle, system) = used(peer.tree(), has_loops), idle_and_system()
    seconds = peer.run()["seconds"]
    after, (idle_after, system_after) = used(peer.tree(), has_loops), idle_and_system()
    total: Counter[str] = Counter()
    for key, (kind, run, waited) in after.items():
        _, run_before, waited_before = before.get(key, ("", 0.0, 0.0))
        total[kind] += run - run_before
        total["waiting for a core"] += waited - waited_before
    return {
        "seconds": seconds,
        **{kind: total[kind] for kind in _KINDS},
        "in the kernel": system_after - system,
        "waiting for a core": total["waiting for a core"],
        "cores idle": idle_after - idle,
    }


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--job", choices=[job for job in MAKERS if job != "killed"])
    parser.add_argument("--peers", nargs="+", choices=list(NAMES))
    parser.add_argument("--pictures", type=int, default=1440, help="of the job `images`")
    parser.add_argument("--runs", type=int, default=3)
    parser.set_defaults(job="images", peers=["limit", "by_hand", "ours"])
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="shares-") as name:
        folder = Path(name)
        os.environ["DASK_ONNX__STORE__DIRECTORY"] = str(folder / "store")
        work = MAKERS[args.job](
            folder, args.assets.absolute(), replace(FULL, pictures=args.pictures)
        )
        for peer in args.peers:
            process = PeerProcess(peer, work, folder, 900)
            try:
                process.run()
                runs = sorted(
                    (shares_of_run(process, peer in _ON_DASK) for _ in range(args.runs)),
                    key=lambda run: run["seconds"],
                )
            finally:
                process.close()
            results[peer] = runs[len(runs) // 2]  # the median run, whose parts fit together
    columns = list(next(iter(results.values())))
    print_table(
        f"{args.job}, {len(work.files)} files: seconds of a warm run, and CPU seconds of two cores",
        ["", *columns],
        [[NAMES[p], *(f"{found[c]:.2f}" for c in columns)] for p, found in results.items()],
    )
    if args.output:
        write_json(args.output, f"shares_{args.job}", {"peers": results})


if __name__ == "__main__":
    main()
