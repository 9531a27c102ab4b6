"""What travels between stages, and how Dask is told to send it.

Packing happens on sending only, inside Dask's own serialisation: values in memory, spilled to disk
or passed between processes of a host stay as they are.
"""

from __future__ import annotations

import pickle
import statistics
import time
from collections import defaultdict, deque
from dataclasses import dataclass
from typing import Any

import dask.config
import numpy as np
from dask.sizeof import sizeof
from dask.utils import parse_bytes
from distributed.comm.addressing import get_address_host
from distributed.protocol import dask_deserialize, dask_serialize, deserialize, serialize
from distributed.protocol.numpy import serialize_numpy_ndarray

from dask_onnx.core import config
from dask_onnx.core.peers import own_worker
from dask_onnx.runtime.batching import Runs
from dask_onnx.runtime.codec import Lossy, pack, unpack

_ENTRIES = 7
"""So many of the last transfers to a host tell how fast its link is."""
_TELLING_BYTES = 256 * 1024
"""Smaller transfers are all latency."""
_UNPACK_RATE = 1e9
"""Bytes a second that the other side is taken to unpack, where its own log cannot be seen."""


@dataclass(frozen=True, slots=True)
class Travelling:
    """A value on its way from one stage to the next."""

    value: Any
    """ndarray, `Runs`, or what a stage made that is no tensor."""
    lossy: Lossy | None = None
    """What the caller allows to be lost on a slow link."""


def _sizeof_travelling(travelling: Travelling) -> int:
    return int(sizeof(travelling.value))


sizeof.register(Travelling, _sizeof_travelling)


def unwrap(value: Any) -> Any:
    return value.value if isinstance(value, Travelling) else value


@dask_serialize.register(Travelling)  # type: ignore[untyped-decorator]  # untyped in distributed
def _serialize(travelling: Travelling, context: Any = None) -> tuple[dict[str, Any], list[Any]]:
    value = travelling.value
    pieces = value.pieces if isinstance(value, Runs) else (value,)
    if not all(isinstance(piece, np.ndarray) and not piece.dtype.hasobject for piece in pieces):
        # Strings, sequences, maps: Dask's pickle.
        inner, frames = serialize(value, serializers=["pickle"], context=context)
        return {"pickled": inner, "lossy": travelling.lossy}, frames
    began = time.perf_counter()
    host, rate = _link(context)
    compresses = bool(context and context.get("compression"))
    packed = [pack(p, rate, travelling.lossy, dask_compresses=compresses) for p in pieces]
    frames = [frame for piece in packed for frame in piece.frames]
    if host is not None:
        _note_packing(host, time.perf_counter() - began, sum(p.nbytes for p in pieces))
    header = {
        "pieces": [(p.way, p.dtype, list(p.shape), len(p.frames)) for p in packed],
        "runs": [value.rows, value.is_filled] if isinstance(value, Runs) else None,
        "lossy": travelling.lossy,
    }
    return header, frames


@dask_deserialize.register(Travelling)  # type: ignore[untyped-decorator]  # untyped in distributed
def _deserialize(header: dict[str, Any], frames: list[Any]) -> Travelling:
    if "pickled" in header:
        return Travelling(deserialize(header["pickled"], frames), header["lossy"])
    left = iter(frames)
    pieces = tuple(
        unpack(way, dtype, tuple(shape), [next(left) for _ in range(count)])
        for way, dtype, shape, count in header["pieces"]
    )
    value = pieces[0] if header["runs"] is None else Runs(pieces, *header["runs"])
    return Travelling(value, header["lossy"])


@dask_serialize.register(np.ndarray)  # type: ignore[untyped-decorator]  # untyped in distributed
def _serialize_array(array: np.ndarray, context: Any = None) -> tuple[dict[str, Any], list[Any]]:
    """Dask's own, but for a dtype of ml_dtypes (float8_e5m2) that it names so that numpy cannot
    read it back; Dask's own reader takes a pickled dtype."""
    header, frames = serialize_numpy_ndarray(array, context=context)
    is_foreign = array.dtype.isbuiltin == 2  # numpy's number for a dtype that a package brings
    if is_foreign and array.dtype.kind != "V" and not header.get("pickle"):
        header["dtype"] = (1, pickle.dumps(array.dtype))
    return header, frames


_packing: defaultdict[str, deque[tuple[float, float]]]
_packing = defaultdict(lambda: deque(maxlen=256))
"""Host to the times when something was packed for it, and the seconds that both sides took."""


def _note_packing(host: str, seconds: float, size: int) -> None:
    _packing[host].append((time.time(), seconds + size / _UNPACK_RATE))


def _link(context: Any) -> tuple[str | None, float | None]:
    """The host at the other end, and bytes a second of the link; None: nothing is packed."""
    try:
        own, other = (get_address_host(context[end]["address"]) for end in ("sender", "recipient"))
    except (TypeError, KeyError, ValueError):
        return None, None  # to disk, or within the process
    if own == other or not config.get("transfer.pack"):
        return None, None
    fixed = config.get("transfer.bandwidth")
    if fixed is not None:
        return other, float(parse_bytes(fixed))
    return other, _measured_rate(other)


def _measured_rate(host: str) -> float:
    """Bytes a second of the last transfers to a host, from the log that Dask's worker keeps.

    The times in it include packing and unpacking, which are taken off. Until there is something to
    go by it is what Dask itself assumes of links, ``distributed.scheduler.bandwidth``.
    """
    log = getattr(own_worker(), "transfer_outgoing_log", ())
    rates: list[float] = []
    for entry in reversed(log):
        if entry["compressed"] >= _TELLING_BYTES and get_address_host(entry["who"]) == host:
            start, stop = entry["start"], entry["stop"]
            packing = sum(s for at, s in _packing[host] if start <= at <= stop)
            duration = max(entry["duration"] - packing, 0.1 * entry["duration"])
            rates.append(entry["compressed"] / duration)
            if len(rates) == _ENTRIES:
                break
    if rates:
        return statistics.median(rates)
    return float(parse_bytes(dask.config.get("distributed.scheduler.bandwidth")))
