"""Custom kernels: the caller's operators in Python, packed so that they travel to the workers."""

from __future__ import annotations

import hashlib
import inspect
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cloudpickle
from onnx.reference.op_run import OpRun

from dask_onnx.core.errors import ModelError, StageError
from dask_onnx.core.process_caches import cached_in_process
from dask_onnx.modelio.operator_names import OperatorName, canonical_domain
from dask_onnx.runtime.evaluator_operators import function_operator, with_own_attributes

_MAX_BYTES = 2**20
"""Bytes of all kernels, which travel with every task that runs them; larger ones belong into a
module."""


@dataclass(frozen=True, slots=True)
class CustomKernels:
    """Operators in Python, pickled so that they can travel.

    Functions of importable modules are pickled by name, those of ``__main__`` and notebooks by
    value.
    """

    names: tuple[OperatorName, ...]
    """Names of the operators."""
    payload: bytes
    """cloudpickle of a list of OpRun subclasses, or (domain, op type, function)."""
    token: str
    """Content digest of the names and of the code, as far as it can be read."""
    axes: tuple[tuple[OperatorName, object], ...] = ()
    """Attribute ``axes`` of each operator, see `collect_custom_kernels`; None without one."""

    def operators(self) -> tuple[type[OpRun], ...]:
        """Return the kernels as ONNX's reference evaluator takes them, unpickled once per process.

        Raises
        ------
        StageError
            A module that they need cannot be imported here.
        """
        return _unpack(self.payload)


@cached_in_process("custom kernels", 64)
def _unpack(payload: bytes) -> tuple[type[OpRun], ...]:
    try:
        entries = pickle.loads(payload)
    except (ImportError, AttributeError) as error:
        raise StageError(
            f"a kernel of your own cannot be imported on this worker: {error}",
            "install its module on every worker, send it with client.upload_file, or have "
            "cloudpickle.register_pickle_by_value(module) take it along",
            reason=str(error),
        ) from None
    return tuple(
        with_own_attributes(entry) if isinstance(entry, type) else function_operator(*entry)
        for entry in entries
    )


def collect_custom_kernels(
    custom_ops: Sequence[type[OpRun]], replace: Mapping[str, Callable[..., Any]]
) -> CustomKernels | None:
    """Pack the caller's kernels.

    An attribute ``axes`` of the class or function says which axes it leaves alone: "independent"
    for an operator that works element by element, or axes such as ``(0,)`` that pass unchanged
    from every input to every output. Without it nothing is assumed, so rows are not split.

    Parameters
    ----------
    custom_ops : sequence of OpRun subclasses
        Operators of onnx.reference, named by their class and ``op_domain``.
    replace : mapping of op type to function
        ``"Gelu"`` of ai.onnx, or ``"domain::Gelu"``. The function is called with the inputs (None
        for one that is left out) and the attributes as keywords, and returns an array, or a tuple
        of several.

    Returns
    -------
    CustomKernels or None
        None if there are none.

    Raises
    ------
    ModelError
        A kernel is no OpRun or no function, its axes are no axes, it cannot be pickled, or it is
        too large to travel.
    """
    kernels = [*_of_classes(custom_ops), *_of_functions(replace)]
    if not kernels:
        return None
    names = [name for name, _, _ in kernels]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ModelError(
            f"there are two kernels for {'::'.join(twice[0]).lstrip(':')}", "leave one of them out"
        )
    entries = [entry for _, entry, _ in kernels]
    payload = _pickled(entries)
    code = [_source(entry if isinstance(entry, type) else entry[2]) for entry in entries]
    token = hashlib.sha256(payload + repr((names, code)).encode()).hexdigest()[:32]
    axes = tuple((name, declared) for name, _, declared in kernels)
    return CustomKernels(tuple(names), payload, token, axes)


_Kernel = tuple[OperatorName, Any, object]
"""Name, entry of the payload, declared axes."""


def _of_classes(custom_ops: Sequence[type[OpRun]]) -> Iterator[_Kernel]:
    for operator in custom_ops:
        if not (isinstance(operator, type) and issubclass(operator, OpRun)):
            raise ModelError(
                f"custom_ops has {operator!r}, which is no subclass of OpRun",
                "derive it from onnx.reference.op_run.OpRun, or pass a function by `replace`",
                option="custom_ops",
            )
        name = canonical_domain(operator.op_domain), operator.__name__
        yield name, operator, _declared_axes(operator, operator.__name__)


def _of_functions(replace: Mapping[str, Callable[..., Any]]) -> Iterator[_Kernel]:
    for key, function in replace.items():
        if not callable(function):
            raise ModelError(
                f"replace[{key!r}] is {type(function).__name__}, which cannot be called",
                "pass a function of the inputs",
                option="replace",
            )
        domain, _, op_type = key.rpartition("::")
        name = canonical_domain(domain), op_type
        yield name, (*name, function), _declared_axes(function, key)


def _pickled(entries: Sequence[Any]) -> bytes:
    try:
        payload: bytes = cloudpickle.dumps(entries)
    except Exception as error:  # whatever the objects that a function captures raise
        raise ModelError(
            f"a kernel of your own cannot be sent to workers: {error}",
            "let it open files, connections and locks inside the function",
            reason=str(error),
        ) from None
    if len(payload) > _MAX_BYTES:
        raise ModelError(
            f"kernels of your own take {len(payload):,} bytes; {_MAX_BYTES:,} may travel with a "
            "task",
            "keep large arrays in the model's initializers, or in a module on the workers",
            numbers={"kernel_bytes": len(payload), "max_bytes": _MAX_BYTES},
        )
    return payload


def _declared_axes(operator: Any, name: str) -> object:
    """Return the axes that the attribute ``axes`` of a class or function declares."""
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
        option="axes",
    )


def _source(thing: Any) -> str:
    """Return the source code, which a pickle by name does not contain; empty without one."""
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):
        return ""
