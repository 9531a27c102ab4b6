"""Profile of a pipeline on two hosts with a slow link: does it say what the kernel counts?

    python benchmarks/profile_links.py --assets .cache/assets --output benchmarks/results

Needs root: the hosts are two network namespaces (see `two_hosts`). PP-OCR detection in four stages
runs on two workers, the stages in turns. The seconds of all categories are compared with wall x
workers, the bytes of links with the interfaces' counters, and a second run with half the rate with
the first.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from two_hosts import ADDRESSES, SCHEDULER_PORT, Link, answer, ask, two_hosts

from dask_onnx.diagnostics.profiling.network_estimate import network_bytes

_HEADERS = 66
"""Bytes of a packet's headers: Ethernet 14, IP 20, TCP 32 with timestamps."""


def load_window(number: int, size: int) -> np.ndarray:
    """Return one window as PP-OCR input, made where it is read: float32, (1, 3, size, size)."""
    rng = np.random.default_rng(number)
    return rng.standard_normal((1, 3, size, size), dtype=np.float32)


def client_side(settings: dict[str, Any]) -> None:
    """Profile a run for each line of stdin, and answer with its numbers; on the first host."""
    import dask
    import dask.array as da
    from distributed import Client

    import dask_onnx as dx

    size, rows = settings["size"], settings["rows"]
    model = dx.load(Path(settings["assets"]) / "det.onnx")
    plan = model.plan(dx.Pipeline(n_stages=4), shapes={"x": (1, 3, size, size)})
    plan = plan.with_placement(dx.Placement((0, 1, 0, 1)))
    client = Client(f"tcp://{ADDRESSES[0]}:{SCHEDULER_PORT}")
    client.wait_for_workers(2)
    dx.configure(client)
    answer({"stages": [stage.label for stage in plan.stages]})
    for line in sys.stdin:
        name, seed = line.split()
        load = dask.delayed(load_window)
        x = da.concatenate(
            [
                da.from_delayed(load(int(seed) * 1000 + i, size), (1, 3, size, size), np.float32)
                for i in range(rows)
            ]
        )
        highest = model.predict(x, plan=plan).max(axis=(1, 2, 3))
        answer({"ready": True})
        sys.stdin.readline()
        with dx.profile() as prof:
            highest.compute()
        prof.save(Path(settings["folder"]) / f"{name}.json")
        summary = prof.summary()
        answer(
            {
                "wall": prof.result.wall,
                "slots": summary.slots,
                "sum": sum(summary.shares.values()),
                "links": prof.rows("link"),
                "summary": str(summary),
            }
        )


def counted(link: Link, client: subprocess.Popen[str], name: str, seed: int) -> dict[str, Any]:
    """Return the numbers of a run, with what left each host over the link meanwhile."""
    ask(client, f"{name} {seed}")
    before = [sent(link, end) for end in (0, 1)]
    found = ask(client, "go")
    after = [sent(link, end) for end in (0, 1)]
    found["kernel"] = [new - old for (new, _), (old, _) in zip(after, before, strict=True)]
    packets = [new - old for (_, new), (_, old) in zip(after, before, strict=True)]
    pairs = zip(found["kernel"], packets, strict=True)
    found["payload"] = [size - _HEADERS * count for size, count in pairs]
    return found


def sent(link: Link, end: int) -> tuple[int, int]:
    """Return the bytes and the packets that have left a host over the link."""
    folder = f"/sys/class/net/{link.devices[end]}/statistics"
    names = [f"{folder}/tx_bytes", f"{folder}/tx_packets"]
    done = subprocess.run(
        [*link.inside(end), "cat", *names], check=True, capture_output=True, text=True
    )
    size, packets = map(int, done.stdout.split())
    return size, packets


def judged(found: dict[str, Any]) -> dict[str, Any]:
    """Return the relative differences of a run's numbers from what they should be."""
    whole = found["wall"] * found["slots"]
    by_sender = [0, 0]
    for row in found["links"]:
        for end, address in enumerate(ADDRESSES):
            goes_over = address in row["sender"] and address not in row["receiver"]
            # The client and the scheduler are on the first host.
            if goes_over and not (row["receiver"] == "client" and end == 0):
                by_sender[end] += row["wire_bytes"]
    ends = [f"tcp://{address}:1" for address in ADDRESSES]
    estimated = [
        network_bytes(by_sender[end], by_sender[1 - end], ends[end], ends[1 - end]) or 0
        for end in range(2)
    ]
    return {
        "wall": found["wall"],
        "sum over wall x workers": found["sum"] / whole,
        "bytes of links": by_sender,
        "bytes of the kernel": found["kernel"],
        "links over kernel": [a / b for a, b in zip(by_sender, found["kernel"], strict=True)],
        "estimates over kernel": [a / b for a, b in zip(estimated, found["kernel"], strict=True)],
        "links over payload": [a / b for a, b in zip(by_sender, found["payload"], strict=True)],
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as work:
        folder = arguments.folder or Path(work)
        settings = {
            "assets": str(arguments.assets.absolute()),
            "rows": arguments.rows,
            "size": arguments.size,
            "folder": str(folder),
        }
        results = {}
        with two_hosts(__file__, settings, work) as (link, client):
            facts = ask(client)
            for number, (name, rate) in enumerate(
                [("warm", 1000), ("fast", arguments.rate), ("slow", arguments.rate // 4)]
            ):
                link.limit(rate)
                found = counted(link, client, name, number)
                if name != "warm":  # it builds sessions
                    print(f"\n{rate} Mbit/s\n{found['summary']}")
                    results[name] = judged(found)
                    print(json.dumps(results[name], indent=2))
            report = [sys.executable, "-m", "dask_onnx", "report"]
            names = [str(folder / f"{name}.json") for name in ("fast", "slow")]
            subprocess.run([*report, names[0], "--compare", names[1]], check=True)
            return {**facts, "rate": arguments.rate, "runs": results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assets", type=Path, default=Path(".cache/assets"))
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--folder", type=Path, default=None, help="Where to keep the profiles.")
    parser.add_argument("--rate", type=int, default=100, help="Mbit/s")
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--client", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        client_side(json.loads(arguments.client))
        return
    from common import write_json

    results = measure(arguments)
    if arguments.output:
        write_json(arguments.output, "profile_links", results)


if __name__ == "__main__":
    main()
