"""Kernels that the caller brings: what they are called, and how they get to the workers."""

from __future__ import annotations

import functools
import hashlib
import inspect
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cloudpickle
from onnx.reference.op_run import OpRun

from dask_onnx.core.errors import ModelError, StageError
from dask_onnx.modelio.normalise import plain_domain

OperatorName = tuple[str, str]
"""Domain ("" is ai.onnx) and op type."""

_MOST_BYTES = 2**20
"""Kernels travel with every task that runs them: what is larger belongs into a module."""


@dataclass(frozen=True, slots=True)
class CustomKernels:
    """Operators in Python, ready to travel: functions of importable modules by name, those of
    ``__main__`` and notebooks by value."""

    names: tuple[OperatorName, ...]
    payload: bytes
    """cloudpickle of a list of OpRun subclasses, or (domain, op type, function)."""
    token: str
    """Content digest of the names and of the code, as far as it can be read."""
    axes: tuple[tuple[OperatorName, object], ...] = ()
    """What each operator says of its axes by an attribute ``axes``; None for nothing."""

    def operators(self) -> tuple[type[OpRun], ...]:
        """The kernels as ONNX's reference evaluator takes them; made once in a process.

        Raises
        ------
        StageError
            A module that they come from cannot be imported here.
        """
        return _unpack(self.payload)


@functools.lru_cache(maxsize=64)
def _unpack(payload: bytes) -> tuple[type[OpRun], ...]:
    try:
        entries = pickle.loads(payload)
    except (ImportError, AttributeError) as error:
        raise StageError(
            f"a kernel of your own cannot be imported on this worker: {error}",
            "install its module on every worker, send it with client.upload_file, or have "
            "cloudpickle.register_pickle_by_value(module) take it along",
        ) from None
    return tuple(entry if isinstance(entry, type) else _as_operator(*entry) for entry in entries)


def _as_operator(domain: str, op_type: str, function: Callable[..., Any]) -> type[OpRun]:
    """An OpRun of a plain function of the inputs, with the attributes as keywords."""

    def run(_: OpRun, *inputs: Any, **attributes: Any) -> tuple[Any, ...]:
        result = function(*inputs, **attributes)
        return result if isinstance(result, tuple) else (result,)

    return type(op_type, (OpRun,), {"op_domain": domain, "_run": run})


def collect_custom_kernels(
    custom_ops: Sequence[type[OpRun]], replace: Mapping[str, Callable[..., Any]]
) -> CustomKernels | None:
    """Pack the caller's kernels; None if there are none.

    Parameters
    ----------
    custom_ops : subclasses of onnx.reference.op_run.OpRun
        Named by their class and ``op_domain``.
    replace : mapping of op type to function
        ``"Gelu"`` of ai.onnx, or ``"domain::Gelu"``; called with the inputs (None for one that is
        left out) and the attributes as keywords, returns an array, or a tuple of several.

    An attribute ``axes`` of the class or function says which axes it leaves alone: "independent"
    for an operator that works element by element, or axes such as ``(0,)`` that go through from
    every input to every output. Without it nothing is assumed, so rows are not cut apart.

    Raises
    ------
    ModelError
        Not an OpRun, not a function, axes that are no axes, cannot be pickled, or too large to
        travel.
    """
    entries: list[Any] = []
    names: list[OperatorName] = []
    axes: list[object] = []
    for operator in custom_ops:
        if not (isinstance(operator, type) and issubclass(operator, OpRun)):
            raise ModelError(
                f"custom_ops has {operator!r}, which is no subclass of OpRun",
                "derive it from onnx.reference.op_run.OpRun, or pass a function by `replace`",
            )
        entries.append(operator)
        names.append((plain_domain(operator.op_domain), operator.__name__))
        axes.append(_declared_axes(operator, operator.__name__))
    for name, function in replace.items():
        if not callable(function):
            raise ModelError(
                f"replace[{name!r}] is {type(function).__name__}, which cannot be called",
                "pass a function of the inputs",
            )
        domain, _, op_type = name.rpartition("::")
        entries.append((plain_domain(domain), op_type, function))
        names.append((plain_domain(domain), op_type))
        axes.append(_declared_axes(function, name))
    if not entries:
        return None
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ModelError(
            f"there are two kernels for {'::'.join(twice[0]).lstrip(':')}", "leave one of them out"
        )
    try:
        payload = cloudpickle.dumps(entries)
    except Exception as error:  # whatever the objects that a function captures raise
        raise ModelError(
            f"a kernel of your own cannot be sent to workers: {error}",
            "let it open files, connections and locks inside the function",
        ) from None
    if len(payload) > _MOST_BYTES:
        raise ModelError(
            f"kernels of your own take {len(payload):,} bytes; {_MOST_BYTES:,} may travel with a "
            "task",
            "keep large arrays in the model's initializers, or in a module on the workers",
        )
    code = [_source(entry if isinstance(entry, type) else entry[2]) for entry in entries]
    token = hashlib.sha256(payload + repr((names, code)).encode()).hexdigest()[:32]
    return CustomKernels(tuple(names), payload, token, tuple(zip(names, axes, strict=True)))


def _declared_axes(operator: Any, name: str) -> object:
    """What a class or a function says of its axes by an attribute of that name."""
    axes = getattr(operator, "axes", None)
    if axes is None or axes == "independent":
        return axes
    if isinstance(axes, int):
        return (axes,)
    if isinstance(axes, tuple | list | set | frozenset) and all(isinstance(a, int) for a in axes):
        return tuple(sorted(axes))
    raise ModelError(
        f"operator {name!r} has axes = {axes!r}",
        'write axes = "independent" if it works element by element, or the axes that go through '
        "unchanged, such as axes = (0,)",
    )


def _source(thing: Any) -> str:
    """What pickle leaves out of a thing that is sent by name."""
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):
        return ""
