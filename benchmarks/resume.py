"""Kill a run in its middle, resume it, and compare the bytes with those of an undisturbed run.

    python benchmarks/resume.py [--blocks 2000] [--formats npy zarr parquet] [--s3]

Prints a row for each format and fault: rows that were complete when the run ended, those of them
that the resumed run computed again, seconds of the resumed run, and whether the bytes are equal.
Faults: kill -9 of the client and all its processes, kill -9 of the scheduler, Ctrl-C, SIGTERM, and
a disk that is full (`--small-disk FOLDER`, on a file system of its own such as a tmpfs, which is
filled up so that half of the output fits). `--s3` writes to a local S3 server (moto), and
`--url s3://bucket/prefix` to an object store.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
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
import fsspec.config
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
    if options.s3:
        options.url = start_s3()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(folder / "model.onnx")
        (folder / "slow.py").write_text(SLOW % options.block_seconds)
        rows = np.random.default_rng(0).standard_normal(
            (options.blocks * ROWS_OF_A_BLOCK, WIDTH), np.float32
        )
        np.save(folder / "x.npy", rows)
        print(f"{'format':<9}{'fault':<11}{'rows done':>10}{'repeated':>9}{'seconds':>9}  bytes")
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
    parser.add_argument("--s3", action="store_true", help="start a local S3 server and write there")
    parser.add_argument("--small-disk", type=Path, help="folder on a file system of its own")
    faults = ["kill", "scheduler", "interrupt", "terminate", "disk"]
    parser.add_argument("--faults", nargs="+", choices=faults, default=faults)
    return parser.parse_args()


def start_s3() -> str:
    """Start an S3 server that ends with this process; return the URL of a bucket in it."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {"ENDPOINT_URL": f"http://{host}:{port}", "KEY": "user", "SECRET": "secret"}
    # Other processes read the settings from the environment.
    os.environ.update({f"FSSPEC_S3_{name}": value for name, value in settings.items()})
    fsspec.config.set_conf_env(fsspec.config.conf)
    fsspec.filesystem("s3").mkdir("resume")
    return "s3://resume/runs"


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


def environment_of(folder: Path) -> dict[str, str]:
    """Return the variables of processes that import modules from a folder."""
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def start(folder: Path, target: str, *more: str, scheduler: str = "") -> subprocess.Popen[bytes]:
    """Start the command line in a process group of its own."""
    command = [sys.executable, "-m", "dask_onnx", "predict", "model.onnx", "x.npy", target]
    command += ["--block-rows", str(ROWS_OF_A_BLOCK), "--batch-size", str(ROWS_OF_A_BLOCK)]
    command += ["--pre", "slow:wait", "--json", *more]
    command += ["--scheduler", scheduler] if scheduler else ["--workers", "2"]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment_of(folder),
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
    folder: Path,
    options: argparse.Namespace,
    kind: str,
    fault: str,
    expected: dict[str, tuple[int, str]],
) -> None:
    target = place(folder, options, kind, "y")
    if fault == "disk":
        if options.small_disk is None or "://" in target:
            return
        target = str(options.small_disk / f"y.{kind}")
        filler = fill(options.small_disk, size_of(expected) // 2)
        told = b"".join(start(folder, target).communicate()).decode()
        filler.unlink()
        if "No space left" not in told:
            raise SystemExit(f"the disk was not full: {told}")
    elif fault == "scheduler":
        process = end_scheduler(folder, target, options)
    else:
        process = start(folder, target)
        wait_for_half(target, process, options.blocks)
        end(process, fault)
    begun = find_begun(absolute_target(target))
    if begun is None:
        print(f"{kind:<9}{fault:<11} nothing is left to resume")
        remove(target)
        return
    found = finish(start(folder, target, "--resume"))
    repeated = (begun.blocks - found["resumed_blocks"]) * ROWS_OF_A_BLOCK
    is_equal = digests(target) == expected
    state = "equal" if is_equal else "DIFFERENT"
    print(f"{kind:<9}{fault:<11}{begun.rows:>10}{repeated:>9}{found['seconds']:>9.1f}  {state}")
    sys.stdout.flush()
    remove(target)


def end_scheduler(
    folder: Path, target: str, options: argparse.Namespace
) -> subprocess.Popen[bytes]:
    """Run on a scheduler of its own process, and kill that."""
    script = [sys.executable, "-m", "dask"]
    environment = environment_of(folder)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    port = 20_000 + os.getpid() % 20_000
    address = f"tcp://127.0.0.1:{port}"
    arguments = ["--port", str(port), "--dashboard-address", ":0"]
    scheduler = subprocess.Popen([*script, "scheduler", *arguments], **quiet)
    workers = [
        subprocess.Popen([*script, "worker", address, "--nthreads", "1"], **quiet) for _ in range(2)
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
    raise SystemExit(f"the run ended before the fault: {b''.join(process.communicate()).decode()}")


def end(process: subprocess.Popen[bytes], fault: str) -> None:
    if fault in ("interrupt", "terminate"):
        # A terminal sends Ctrl-C to all processes of the group.
        if fault == "interrupt":
            os.killpg(process.pid, signal.SIGINT)
        else:
            os.kill(process.pid, signal.SIGTERM)
        process.communicate(timeout=120)
        return
    for each in [*psutil.Process(process.pid).children(recursive=True), process]:
        os.kill(each.pid, signal.SIGKILL)
    process.wait()


def fill(folder: Path, free_bytes: int) -> Path:
    """Fill the disk of a folder so that so many bytes are free; return the file that does so."""
    filler = folder / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(folder).free - free_bytes)
    return filler


def digests(target: str) -> dict[str, tuple[int, str]]:
    """Return bytes and digest of each file of an output, by name."""
    system, root = fsspec.url_to_fs(target)
    system.invalidate_cache()
    found = {path: system.cat_file(path) for path in system.find(root)}
    return {
        path.removeprefix(root): (len(content), hashlib.sha256(content).hexdigest())
        for path, content in found.items()
    }


def size_of(found: dict[str, tuple[int, str]]) -> int:
    return sum(size for size, _ in found.values())


def remove(target: str) -> None:
    system, root = fsspec.url_to_fs(target)
    system.rm(root, recursive=True)


if __name__ == "__main__":
    main()
