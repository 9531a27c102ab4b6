"""Values between stages, and how Dask serializes them: encoded for slow links.

Encoding happens inside Dask's own serialization, and only when a value is sent to another host:
values in memory, spilled to disk or passed between processes of a host stay as they are.
"""

from __future__ import annotations

import pickle
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import dask.config
import numpy as np
from dask.sizeof import sizeof
from dask.utils import parse_bytes
from distributed.comm import get_address_host
from distributed.protocol import dask_deserialize, dask_serialize, deserialize, serialize

from dask_onnx.core import config
from dask_onnx.core.dask_internals import serialize_numpy_ndarray, worker_of_process
from dask_onnx.core.meters import count, metered
from dask_onnx.core.process_caches import BoundedCache, cached_in_process
from dask_onnx.runtime.batching import MicroBatches
from dask_onnx.runtime.codec import Lossy, pack, unpack

_MAX_TRANSFERS = 7
"""Number of last transfers to a host whose median gives the rate of its link."""
_MIN_TRANSFER_BYTES = 256 * 1024
"""Bytes of a transfer below which its time is mostly latency."""
_UNPACK_BYTES_PER_SECOND = 1e9
"""Assumed rate at which the receiver decodes, since its own log cannot be seen."""

_UNPACKED = ("raw", "masked")
"""Encodings that are as long as the value."""

_Packings = tuple[tuple[float, float], ...]
"""Times at which values were encoded, in seconds since the epoch, with the seconds that both sides
took."""
_packings: BoundedCache[str, _Packings] = BoundedCache("encoding times of hosts", 256)
"""Host to the last times at which values were encoded for it."""
_MAX_PACKINGS = 256
"""Number of encoding times that are kept for a host."""


@dataclass(frozen=True, slots=True)
class StageOutput:
    """A value on its way from one stage to the next."""

    value: Any
    """ndarray, `MicroBatches`, or an output that is no tensor."""
    lossy: Lossy | None = None
    """Precision that the value may lose on a slow link; None for none."""
    rows: int | None = None
    """Rows of the task's input; None if it has none. A bare value does not show them."""


def _sizeof_stage_output(output: StageOutput) -> int:
    return int(sizeof(output.value))


# Dask weighs results by this when it places tasks and when it spills.
sizeof.register(StageOutput, _sizeof_stage_output)


def rows_of_sent(values: Iterable[Any]) -> int | None:
    """Return the rows that the values of other stages were made of; None where none has any."""
    found = (value.rows for value in values if isinstance(value, StageOutput))
    return next((rows for rows in found if rows is not None), None)


def unwrap(value: Any) -> Any:
    """Return the value of a `StageOutput`; any other value as it is."""
    return value.value if isinstance(value, StageOutput) else value


@dask_serialize.register(StageOutput)
def _serialize(output: StageOutput, context: Any = None) -> tuple[dict[str, Any], list[Any]]:
    value = output.value
    pieces = value.pieces if isinstance(value, MicroBatches) else (value,)
    if not all(isinstance(piece, np.ndarray) and not piece.dtype.hasobject for piece in pieces):
        # Strings, sequences, maps: Dask's pickle.
        inner, frames = serialize(value, serializers=["pickle"], context=context)
        return {"pickled": inner, "lossy": output.lossy, "rows": output.rows}, frames
    began = time.perf_counter()
    with metered("encode") as moved:
        host, rate = _link(context)
        compresses = bool(context and context.get("compression"))
        packed = [pack(p, rate, output.lossy, dask_compresses=compresses) for p in pieces]
        moved.peer = host or ""
        moved.plain_bytes = sum(piece.nbytes for piece in pieces)
        moved.wire_bytes = sum(piece.nbytes for piece in packed)
    frames = [frame for piece in packed for frame in piece.frames]
    count("packed" if any(p.encoding not in _UNPACKED for p in packed) else "unpacked", 1)
    if host is not None:
        _record_packing(host, time.perf_counter() - began, sum(p.nbytes for p in pieces))
    header = {
        "pieces": [(p.encoding, p.dtype, list(p.shape), len(p.frames)) for p in packed],
        "micro_batches": (
            [value.rows, value.is_padded] if isinstance(value, MicroBatches) else None
        ),
        "lossy": output.lossy,
        "rows": output.rows,
    }
    return header, frames


@dask_deserialize.register(StageOutput)
def _deserialize(header: dict[str, Any], frames: list[Any]) -> StageOutput:
    if "pickled" in header:
        value = deserialize(header["pickled"], frames)
        return StageOutput(value, header["lossy"], header["rows"])
    left = iter(frames)
    with metered("decode") as moved:
        moved.wire_bytes = sum(memoryview(frame).nbytes for frame in frames)
        pieces = tuple(
            unpack(encoding, dtype, tuple(shape), [next(left) for _ in range(number)])
            for encoding, dtype, shape, number in header["pieces"]
        )
        moved.plain_bytes = sum(piece.nbytes for piece in pieces)
    batches = header["micro_batches"]
    value = pieces[0] if batches is None else MicroBatches(pieces, *batches)
    return StageOutput(value, header["lossy"], header["rows"])


def sendable(array: Any) -> Any:
    """Return an array after making sure that Dask can send its dtype.

    Dask's serializer of arrays is replaced only in processes that have an array of a dtype which
    numpy lacks: importing this package changes nothing for others.
    """
    if isinstance(array, np.ndarray) and array.dtype.isbuiltin == _REGISTERED:
        _support_extended_dtypes()
    return array


@cached_in_process("serializers of extended dtypes")
def _support_extended_dtypes() -> None:
    dask_serialize.register(np.ndarray)(_serialize_array)


_REGISTERED = 2
"""Value of ``dtype.isbuiltin`` for a dtype that a package, such as ml_dtypes, registers."""


def _serialize_array(array: np.ndarray, context: Any = None) -> tuple[dict[str, Any], list[Any]]:
    """Serialize an array as Dask does, but pickle a dtype of ml_dtypes.

    Dask writes such a dtype (float8_e5m2) by a name that numpy cannot read; its own reader takes a
    pickled dtype.
    """
    header, frames = serialize_numpy_ndarray(array, context=context)
    if (
        array.dtype.isbuiltin == _REGISTERED
        and array.dtype.kind != "V"
        and not header.get("pickle")
    ):
        header["dtype"] = (1, pickle.dumps(array.dtype))
    return header, frames


def _record_packing(host: str, seconds: float, size: int) -> None:
    """Record that `size` bytes were encoded for a host in `seconds`."""
    packing = time.time(), seconds + size / _UNPACK_BYTES_PER_SECOND
    _packings.update(host, lambda old: (*(old or ())[1 - _MAX_PACKINGS :], packing))


def _link(context: Any) -> tuple[str | None, float | None]:
    """Return the receiving host, and bytes per second of the link; None where nothing is encoded.

    Parameters
    ----------
    context : dict or None
        Addresses of both ends, as Dask passes them when it serializes for a comm.
    """
    try:
        sender, recipient = (context[end]["address"] for end in ("sender", "recipient"))
        own, other = get_address_host(sender), get_address_host(recipient)
    except (TypeError, KeyError, ValueError):
        return None, None  # to disk, or within the process
    if own == other or not config.get("transfer.pack"):
        return None, None
    fixed = config.get("transfer.bandwidth")
    if fixed is not None:
        return other, float(parse_bytes(fixed))
    return other, _measured_rate(sender, other)


def _measured_rate(sender: str, host: str) -> float:
    """Return bytes per second of the last transfers to a host, from the log of the sending worker.

    The log's times include encoding and decoding, which are subtracted. Without any transfer it
    is the rate that Dask assumes, ``distributed.scheduler.bandwidth``.
    """
    log = getattr(worker_of_process(sender), "transfer_outgoing_log", ())
    packings = _packings.get(host) or ()
    rates: list[float] = []
    for entry in reversed(log):
        if entry["compressed"] >= _MIN_TRANSFER_BYTES and get_address_host(entry["who"]) == host:
            start, stop = entry["start"], entry["stop"]
            packing = sum(seconds for at, seconds in packings if start <= at <= stop)
            # The receiver's time is an estimate, and may exceed what the transfer took.
            duration = max(entry["duration"] - packing, 0.1 * entry["duration"])
            rates.append(entry["compressed"] / duration)
            if len(rates) == _MAX_TRANSFERS:
                break
    if rates:
        return statistics.median(rates)
    return float(parse_bytes(dask.config.get("distributed.scheduler.bandwidth")))
