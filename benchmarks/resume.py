"""Kill a run in its middle, resume it, and compare the bytes with those of an undisturbed run.

    python benchmarks/resume.py [--blocks 2000] [--formats npy zarr parquet]

Prints a row for each format and fault: blocks that were complete when the run ended, those of them
that the resumed run computed again, and whether the bytes are equal. Faults: kill -9 of the client
and all its processes, kill -9 of the scheduler, Ctrl-C, and a full disk (`--small-disk FOLDER`, on
a file system of a few MiB such as a tmpfs). `--url s3://bucket/prefix` writes to an object store.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper, numpy_helper

from dask_onnx.io.begun_outputs import find_begun
from dask_onnx.io.targets import absolute_target

ROWS_OF_A_BLOCK, WIDTH, OUTPUT_WIDTH = 16, 64, 256
SLOW = "import time\n\ndef wait(block):\n    time.sleep(%s)\n    return block\n"


def main() -> None:
    options = parsed()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(folder / "model.onnx")
        (folder / "slow.py").write_text(SLOW % options.block_seconds)
        rows = np.random.default_rng(0).standard_normal(
            (options.blocks * ROWS_OF_A_BLOCK, WIDTH), np.float32
        )
        np.save(folder / "x.npy", rows)
        print(f"{'format':<9}{'fault':<11}{'complete':>9}{'repeated':>9}{'seconds':>9}  bytes")
        for kind in options.formats:
            whole = place(folder, options, kind, "whole")
            finish(start(folder, whole))
            expected = digests(whole)
            for fault in options.faults:
                run_with_fault(folder, options, kind, fault, expected)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=2000)
    parser.add_argument("--block-seconds", type=float, default=0.005)
    parser.add_argument("--formats", nargs="+", default=["npy", "zarr", "parquet"])
    parser.add_argument("--url", help="prefix of an object store, which replaces the folder")
    parser.add_argument("--small-disk", type=Path, help="folder on a disk of a few MiB")
    parser.add_argument("--faults", nargs="+", default=["kill", "scheduler", "interrupt", "disk"])
    return parser.parse_args()


def save_model(path: Path) -> None:
    """Write x (N, 64) -> y (N, 256) = x W."""
    weights = np.random.default_rng(1).standard_normal((WIDTH, OUTPUT_WIDTH)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "W"], ["y"])],
        "resume",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", OUTPUT_WIDTH])],
        [numpy_helper.from_array(weights, "W")],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)


def place(folder: Path, options: argparse.Namespace, kind: str, name: str) -> str:
    is_remote = options.url is not None and kind != "npy"
    return f"{options.url if is_remote else folder}/{name}.{kind}"


def start(folder: Path, target: str, *more: str, scheduler: str = "") -> subprocess.Popen[bytes]:
    """Start the command line in a process group of its own."""
    command = [sys.executable, "-m", "dask_onnx", "predict", "model.onnx", "x.npy", target]
    command += ["--block-rows", str(ROWS_OF_A_BLOCK), "--batch-size", str(ROWS_OF_A_BLOCK)]
    command += ["--pre", "slow:wait", "--json", *more]
    command += ["--scheduler", scheduler] if scheduler else ["--workers", "2"]
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Wait for a run that must succeed; return its numbers."""
    output, error = process.communicate()
    if process.returncode:
        raise SystemExit(output.decode() + error.decode())
    numbers: dict[str, Any] = json.loads(output)
    return numbers


def run_with_fault(
    folder: Path, options: argparse.Namespace, kind: str, fault: str, expected: dict[str, str]
) -> None:
    target = place(folder, options, kind, "y")
    if fault == "disk":
        if options.small_disk is None:
            return
        target = str(options.small_disk / f"y.{kind}")
        process = start(folder, target)
        process.communicate()
    elif fault == "scheduler":
        process = end_scheduler(folder, target, options)
    else:
        process = start(folder, target)
        wait_for_half(target, process, options.blocks)
        end(process, fault)
    begun = find_begun(absolute_target(target))
    if begun is None:
        print(f"{kind:<9}{fault:<11} the run ended before the fault")
        return
    before = set(begun.journal.completed())
    if fault == "disk":
        target = enlarge(target, folder, begun.run)
    found = finish(start(folder, target, "--resume"))
    repeated = len(before) - found["resumed_blocks"]
    is_equal = digests(target) == expected
    state = "equal" if is_equal else "DIFFERENT"
    print(f"{kind:<9}{fault:<11}{len(before):>9}{repeated:>9}{found['seconds']:>9.1f}  {state}")
    sys.stdout.flush()
    remove(target)


def end_scheduler(
    folder: Path, target: str, options: argparse.Namespace
) -> subprocess.Popen[bytes]:
    """Run on a scheduler of its own process, and kill that."""
    script = Path(sys.executable).with_name("dask")
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    port = 20_000 + os.getpid() % 20_000
    address = f"tcp://127.0.0.1:{port}"
    arguments = ["--port", str(port), "--dashboard-address", ":0"]
    scheduler = subprocess.Popen([script, "scheduler", *arguments], **quiet)
    workers = [
        subprocess.Popen([script, "worker", address, "--nthreads", "1"], **quiet) for _ in range(2)
    ]
    try:
        process = start(folder, target, scheduler=address)
        wait_for_half(target, process, options.blocks)
        scheduler.kill()
        process.communicate(timeout=300)
    finally:
        for each in [scheduler, *workers]:
            each.kill()
            each.wait()
    return process


def wait_for_half(target: str, process: subprocess.Popen[bytes], blocks: int) -> None:
    while process.poll() is None:
        begun = find_begun(absolute_target(target))
        if begun is not None and begun.blocks >= blocks // 2:
            return
        time.sleep(0.1)
    raise SystemExit((process.communicate()[1] or b"").decode() or "the run was too fast")


def end(process: subprocess.Popen[bytes], fault: str) -> None:
    if fault == "interrupt":
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=120)
        return
    for each in [*psutil.Process(process.pid).children(recursive=True), process]:
        os.kill(each.pid, signal.SIGKILL)
    process.wait()


def enlarge(target: str, folder: Path, run: str) -> str:
    """Move what a full disk holds to one with space."""
    path = Path(target)
    for name in (f".{path.name}.resume", f".{path.name}.{run}.partial"):
        if path.with_name(name).exists():
            shutil.move(path.with_name(name), folder / name)
    manifest = folder / f".{path.name}.resume" / "manifest.json"
    new = str(folder / path.name)
    manifest.write_text(manifest.read_text().replace(target, new))
    return new


def digests(target: str) -> dict[str, str]:
    system, root = fsspec.url_to_fs(target)
    return {
        path.removeprefix(root): hashlib.sha256(system.cat_file(path)).hexdigest()
        for path in system.find(root)
    }


def remove(target: str) -> None:
    system, root = fsspec.url_to_fs(target)
    system.rm(root, recursive=True)


if __name__ == "__main__":
    main()
