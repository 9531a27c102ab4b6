"""Undocumented interfaces of ONNX Runtime (ORT) that this package uses, all in one place.

Each was checked with onnxruntime 1.23.0, the oldest version that dask_onnx accepts, and 1.32.0.
tests/runtime/test_onnxruntime_internals.py fails where a new version changes one of them.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from dask_onnx.analysis.shapes import OperatorSchema
from dask_onnx.core.process_caches import cached_in_process
from dask_onnx.core.specs import CPU_PROVIDER
from dask_onnx.modelio.operator_names import OperatorName, canonical_domain

# Every message of ORT's C++ code begins so, then a number and a name of the kind of error.
_ERROR_PREFIX = "[ONNXRuntimeError] : "

# Nodes are called by their positions (`number_nodes`), since ORT's names have no escapes.
_KERNEL_EVENT = re.compile(r"node_(\d+)_kernel_time$")
# ORT names kernels that it adds after values and nodes of the model, which may be called anything.
_NODE_PREFIX = "dask-onnx-position-"
_NODE_NUMBER = re.compile(f"{_NODE_PREFIX}(\\d+)")
_KERNEL_SUFFIX = "_kernel_time"


@cached_in_process("ONNX Runtime kernels")
def _kernel_versions() -> Mapping[tuple[str, str, str], Sequence[tuple[int, int]]]:
    # The documented way to ask for a kernel is to build a session, which takes seconds for a node
    # with megabytes of attributes; this list is read in milliseconds, but has no types.
    import onnxruntime.capi.onnxruntime_pybind11_state as state

    versions: dict[tuple[str, str, str], list[tuple[int, int]]] = defaultdict(list)
    for kernel in state.get_all_opkernel_def():
        key = kernel.provider, kernel.domain, kernel.op_name
        versions[key].append(kernel.version_range)
    return dict(versions)


def has_kernel(
    domain: str, op_type: str, version: int, providers: Iterable[str] = (CPU_PROVIDER,)
) -> bool:
    """Return whether ORT lists a kernel of one of some providers, whatever types and attributes.

    Parameters
    ----------
    domain : str
        Domain of the operator, "" for ai.onnx.
    op_type : str
        Name of the operator.
    version : int
        Opset version of the domain in the model.
    providers : iterable of str
        Names of execution providers.
    """
    found = (_kernel_versions().get((name, domain, op_type), ()) for name in providers)
    return any(first <= version <= last for ranges in found for first, last in ranges)


@cached_in_process("ONNX Runtime's own operators")
def contrib_schemas() -> Mapping[OperatorName, OperatorSchema]:
    """Return the operators that ORT has and ONNX does not define, by domain and op type.

    Some are in ONNX's own domain: ``SimplifiedLayerNormalization``, and ``LayerNormalization``
    before opset 17.
    """
    # ORT publishes no schemas of its own operators to Python; shape inference needs to know which
    # output has the type of which input.
    import onnxruntime.capi.onnxruntime_pybind11_state as state

    found: dict[OperatorName, list[Any]] = defaultdict(list)
    for schema in state.get_all_operator_schema():
        domain = canonical_domain(schema.domain)
        if not onnx.defs.has(schema.name, schema.since_version, domain):
            found[domain, schema.name].append(schema)
    return {name: _operator_schema(versions) for name, versions in found.items()}


def _operator_schema(versions: Sequence[Any]) -> OperatorSchema:
    """Return what is needed of the versions of an operator in ORT's registry."""
    newest_last = sorted(versions, key=lambda schema: int(schema.since_version))
    types = [parameter.typeStr for parameter in newest_last[-1].inputs]
    return OperatorSchema(
        tuple(
            types.index(output.typeStr) if output.typeStr in types else None
            for output in newest_last[-1].outputs
        ),
        {int(schema.since_version): bool(schema.deprecated) for schema in newest_last},
    )


def without_error_prefix(message: str) -> str:
    """Return a message of ORT without the prefix that all of them have."""
    return message.removeprefix(_ERROR_PREFIX)


@dataclass(frozen=True, slots=True)
class KernelCall:
    """One call of a kernel in a profile of ORT."""

    node: int | None
    """Position of the node, by its name; None for one that ORT has added."""
    name: str
    """ORT's name of the node."""
    op_type: str
    """Operator as it runs, such as "FusedConv"."""
    seconds: float
    """Seconds of the call."""
    moved_bytes: int
    """Bytes of the node's weights, inputs and outputs; 0 for a node that runs others."""
    thread: int = 0
    """Operating system's identifier of the thread."""
    run: int = 0
    """Number of the session's run in this thread, from 0."""
    runs_others: bool = False
    """True for a node with a body, such as If: its seconds are without those of the body."""


def numbered_name(position: int) -> str:
    """Return the name to give to a node, by which `read_kernel_calls` knows its position."""
    return f"{_NODE_PREFIX}{position}"


def read_kernel_calls(profile: Path) -> list[KernelCall]:
    """Return every call of a kernel in a profile, in the order of their ends.

    Parameters
    ----------
    profile : Path
        As for `read_kernel_seconds`. Nodes are named by `numbered_name`.
    """
    runs: Counter[int] = Counter()
    ended: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    found = []
    for event in json.loads(profile.read_text()):
        name, facts, thread = event.get("name", ""), event.get("args", {}), event.get("tid", 0)
        runs[thread] += name == "model_run"  # written at the end of a run
        if event.get("cat") != "Node" or not name.endswith(_KERNEL_SUFFIX):
            continue
        inner = _take_inner(ended[thread], event["ts"], event["dur"])
        number = _NODE_NUMBER.search(name)
        sizes = ("activation_size", "parameter_size", "output_size")
        moved = sum(int(facts.get(size, 0)) for size in sizes)
        found.append(
            KernelCall(
                node=int(number[1]) if number else None,
                name=name.removesuffix(_KERNEL_SUFFIX),
                op_type=str(facts.get("op_name", "")),
                seconds=(event["dur"] - (inner or 0)) * 1e-6,
                moved_bytes=moved if inner is None else 0,
                thread=thread,
                run=runs[thread],
                runs_others=inner is not None,
            )
        )
    return found


def _take_inner(ended: list[tuple[int, int]], start: int, duration: int) -> int | None:
    """Return the duration of the calls inside one that has just ended; None if there are none.

    Parameters
    ----------
    ended : list of (int, int)
        Start and duration of the calls of a thread that are inside no other one, in microseconds
        and in their order. Those inside this one are replaced by it.
    start, duration : int
        The same of this call.
    """
    inner = None
    # A call of no duration at the very begin may as well have ended before.
    while ended and duration and ended[-1][0] >= start and sum(ended[-1]) > start:
        inner = (inner or 0) + ended.pop()[1]
    ended.append((start, duration))
    return inner


def read_kernel_seconds(profile: Path) -> Mapping[int, Sequence[float]]:
    """Return the seconds of every kernel call, by node and in the order of the calls.

    Parameters
    ----------
    profile : Path
        File that ``InferenceSession.end_profiling()`` names, in Chrome's trace format. The names
        of its events are not documented.

    Returns
    -------
    mapping of int to sequence of float
        Position of a node, as in its name ``node_<position>``, to seconds of its runs. Nodes that
        ORT removed are missing.
    """
    seconds: dict[int, list[float]] = defaultdict(list)
    for event in json.loads(profile.read_text()):
        match = _KERNEL_EVENT.search(event.get("name", ""))
        if match and event.get("cat") == "Node":
            seconds[int(match[1])].append(event["dur"] * 1e-6)
    return dict(seconds)
