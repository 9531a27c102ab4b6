"""Check the CUDA path on a machine with a device, in under eight minutes.

    pip install wheels/*.whl            # onnxruntime-gpu with its CUDA libraries, dask-onnx
    python benchmarks/cuda_check.py

Each check prints a line; the exit code is 1 if one fails. Without a device it says "no CUDA device"
and does nothing. The checks make their models and need no files. Not run on a device so far.

- whole and cut plans give the CPU's results within the tolerance;
- an option of the provider (a device that does not exist) is passed through, and refused before
  work starts;
- two workers share one device;
- two sessions hand a value over in the device's memory, by ONNX Runtime's own IO binding (tasks of
  dask_onnx hand over through the host);
- a limit of the provider's memory holds, and memory is given back with the sessions.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
BUDGET_SECONDS = 7 * 60
TOLERANCE = 1e-3
"""Largest difference relative to the largest value: TF32 products have 10 bits of mantissa."""
GPU_LIMIT = 2 * 2**30
RNG = np.random.default_rng(0)


def layers(number: int, width: int) -> Any:
    """Return a model of dense layers, from x to y, float32 (N, width)."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights, last = [], [], "x"
    for i in range(number):
        value = (RNG.standard_normal((width, width)) / np.sqrt(width)).astype(np.float32)
        weights.append(numpy_helper.from_array(value, f"w{i}"))
        out = "y" if i == number - 1 else f"a{i}"
        nodes.append(helper.make_node("MatMul", [last, f"w{i}"], [f"m{i}"], name=f"product{i}"))
        nodes.append(helper.make_node("Tanh", [f"m{i}"], [out], name=f"tanh{i}"))
        last = out
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", width])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def has_device() -> bool:
    """Return whether ONNX Runtime has CUDA's provider and can use a device."""
    import onnxruntime

    if CUDA not in onnxruntime.get_available_providers():
        return False
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        found = onnxruntime.InferenceSession(
            layers(1, 8).SerializeToString(), options, providers=[CUDA]
        )
    except Exception as error:
        print(f"the provider is installed, and no session can be built: {error}")
        return False
    return CUDA in found.get_providers()


def used_bytes() -> int | None:
    """Return the memory of the first device that is in use; None without nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=30)
    return int(done.stdout.split()[0]) * 2**20 if done.returncode == 0 else None


class Checks:
    """Checks with one model of 12 dense layers, and the CPU's results."""

    def __init__(self) -> None:
        import dask_onnx as dx

        self.dx = dx
        self.model = dx.load(layers(12, 1024))
        self.x = RNG.standard_normal((512, 1024)).astype(np.float32)
        self.expected = self.model(self.x, batch_size=None)

    def spec(self, **options: Any) -> Any:
        return self.dx.SessionSpec(providers=((CUDA, options), CPU))

    def compare(self, found: Any) -> str:
        worst = float(np.abs(np.asarray(found) - self.expected).max())
        worst /= float(np.abs(self.expected).max())
        assert worst <= TOLERANCE, f"differs by {worst:.1e}, more than {TOLERANCE:.0e}"
        return f"differs by {worst:.1e}"

    def whole(self) -> str:
        plan = self.model.plan("whole", session=self.spec())
        said = self.compare(plan.predict(self.x, batch_size=None))
        seconds = {}
        for name, session in (("device", self.spec()), ("CPU", self.dx.SessionSpec())):
            plan = self.model.plan("whole", session=session)
            plan.predict(self.x, batch_size=None)
            began = time.perf_counter()
            for _ in range(5):
                plan.predict(self.x, batch_size=None)
            seconds[name] = (time.perf_counter() - began) / 5
        return f"{said}; {seconds['device'] * 1e3:.1f} ms, CPU {seconds['CPU'] * 1e3:.1f} ms"

    def cut(self) -> str:
        plan = self.model.plan("fused", n_stages=4, session=self.spec())
        assert {stage.kernel for stage in plan.stages} == {"onnxruntime"}
        return f"{len(plan.stages)} stages; " + self.compare(plan.predict(self.x, batch_size=None))

    def options(self) -> str:
        try:
            self.model.plan("whole", session=self.spec(device_id=99)).predict(self.x)
        except self.dx.DaskOnnxError as error:
            return f"refused: {type(error).__name__}"
        raise AssertionError("a device that does not exist was accepted")

    def two_workers(self) -> str:
        import dask.array as da
        from distributed import Client, LocalCluster

        with (
            LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
            Client(cluster),
        ):
            x = da.from_array(self.x, chunks=(64, 1024))
            for strategy, stages in (("whole", None), ("fused", 3)):
                session = self.spec(gpu_mem_limit=GPU_LIMIT)
                plan = self.model.plan(strategy, n_stages=stages, session=session)
                said = self.compare(plan.predict(x, batch_size=None).compute())
        return said

    def binding(self) -> str:
        import onnxruntime

        first, second = (
            onnxruntime.InferenceSession(layers(2, 1024).SerializeToString(), providers=[CUDA])
            for _ in range(2)
        )
        expected = second.run(None, {"x": first.run(None, {"x": self.x})[0]})[0]
        one = first.io_binding()
        one.bind_cpu_input("x", self.x)
        one.bind_output("y", "cuda")
        first.run_with_iobinding(one)
        (value,) = one.get_outputs()
        assert value.device_name() == "cuda", value.device_name()
        two = second.io_binding()
        two.bind_ortvalue_input("x", value)
        two.bind_output("y", "cuda")
        second.run_with_iobinding(two)
        found = two.get_outputs()[0].numpy()
        worst = float(np.abs(found - expected).max())
        assert worst <= TOLERANCE, worst
        return f"handed over in {value.device_name()} memory; differs by {worst:.1e}"

    def memory(self) -> str:
        from dask_onnx.runtime.session_cache import SESSION_CACHE

        before = used_bytes()
        plan = self.model.plan("whole", session=self.spec(gpu_mem_limit=GPU_LIMIT))
        self.compare(plan.predict(self.x, batch_size=None))
        during = used_bytes()
        SESSION_CACHE.clear()
        after = used_bytes()
        if before is None or during is None or after is None:
            return "no nvidia-smi, so that memory was not read"
        assert during - before <= 2 * GPU_LIMIT, f"{(during - before) / 2**20:.0f} MiB"
        mib = [each / 2**20 for each in (before, during, after)]
        return "before {:.0f}, with the session {:.0f}, after it {:.0f} MiB".format(*mib)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=BUDGET_SECONDS)
    arguments = parser.parse_args()
    if not has_device():
        print("no CUDA device")
        return
    began, failed = time.monotonic(), 0
    import dask

    with (
        tempfile.TemporaryDirectory() as folder,
        dask.config.set({"onnx.store.directory": folder}),
    ):
        checks = Checks()
        names = ("whole", "cut", "options", "two_workers", "binding", "memory")
        for name in names:
            if time.monotonic() - began > arguments.seconds:
                print(f"{name}: left out, the time is over")
                failed += 1
                continue
            failed += not passed(name, getattr(checks, name))
    print(f"{len(names) - failed} of {len(names)} checks in {time.monotonic() - began:.0f} s")
    sys.exit(1 if failed else 0)


def passed(name: str, check: Callable[[], str]) -> bool:
    began = time.monotonic()
    try:
        said = check()
    except Exception as error:
        print(f"{name}: FAILED: {type(error).__name__}: {error}", flush=True)
        return False
    print(f"{name}: {said} ({time.monotonic() - began:.1f} s)", flush=True)
    return True


if __name__ == "__main__":
    main()
