"""Encodings of a tensor for a slow link, chosen by a cheap sample of it.

Encodings, all but the last two lossless:

    raw        the bytes as they are
    masked     the same, XOR fixed noise, which takes a tenth of the time of lz4: Dask's own
               compression, where it is on, tries every frame, and would compress bytes that
               arrive sooner uncompressed
    lz4        the bytes through lz4
    shuffle    the first bytes of all elements, then the second, and so on, through lz4: for
               integers and images (as in Masui et al., 2015, at the level of bytes)
    zeros      a bit for each element, and the elements that are not zero: for outputs of ReLU
    float16    half precision
    int8       255 levels for each channel (axis 1), with its scale
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import lz4.block
import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Lossy = Literal["float16", "int8"]
"""Lossy encodings that a caller may allow."""

MIN_BYTES = 64 * 1024
"""Smaller tensors are sent as they are: the round trip takes longer than their bytes."""
_SAMPLE_BLOCKS, _SAMPLE_BYTES = 8, 16 * 1024
_MAX_RELATIVE_TIME = 0.9
"""Bound on the predicted time of an encoding, relative to that of the raw bytes."""
_DASK_COMPRESSES_BELOW = 0.75
"""Ratio of lz4 in the sample below which Dask may compress: its own threshold is 0.7, by a sample
of its own."""
_NOISE = np.random.default_rng(0).integers(0, 2**63, 8192, dtype=np.uint64)
_MIN_ZEROS = 0.25
"""Share of zeros below which the mask takes more bytes than it saves."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A tensor in the encoding in which it is sent."""

    encoding: str
    """Name of the encoding."""
    dtype: str
    """Name of the dtype, for `parse_dtype`."""
    shape: tuple[int, ...]
    """Shape of the tensor."""
    frames: list[Any]
    """Bytes-like objects, in the order that `unpack` takes them."""

    @property
    def nbytes(self) -> int:
        """Bytes of all frames."""
        return sum(memoryview(frame).nbytes for frame in self.frames)


def pack(
    array: Array,
    rate: float | None,
    lossy: Lossy | None = None,
    *,
    dask_compresses: bool = False,
) -> Packed:
    """Encode a tensor so that it is over the link soonest.

    Parameters
    ----------
    array : ndarray
        Any dtype that has bytes (no objects).
    rate : float or None
        Bytes per second of the link; None sends the bytes as they are.
    lossy : {"float16", "int8"}, optional
        Precision that float32 and float64 values may lose, if it pays.
    dask_compresses : bool
        True if Dask will try to compress the frames.
    """
    array = np.ascontiguousarray(array).reshape(array.shape)
    encoding = "raw"
    if rate is not None and array.nbytes >= MIN_BYTES:
        encoding = choose_encoding(array, rate, lossy, dask_compresses=dask_compresses)
    return Packed(encoding, dtype_text(array.dtype), array.shape, _PACK[encoding](array))


def unpack(encoding: str, dtype: str, shape: tuple[int, ...], frames: list[Any]) -> Array:
    """Decode a tensor; raw frames are not copied.

    Parameters
    ----------
    encoding, dtype, shape, frames
        Fields of `Packed`.
    """
    return _UNPACK[encoding](frames, parse_dtype(dtype), shape)


def dtype_text(dtype: np.dtype) -> str:
    """Return text that `parse_dtype` reads; numpy's own text of an ml_dtypes type is raw bytes."""
    return str(dtype.str if dtype.isbuiltin == 1 else dtype.name)


def parse_dtype(text: str) -> np.dtype:
    """Return the dtype of a text of `dtype_text`."""
    return np.dtype(getattr(ml_dtypes, text, text))


def choose_encoding(
    array: Array, rate: float, lossy: Lossy | None = None, *, dask_compresses: bool = False
) -> str:
    """Return the encoding that a sample predicts to take the least time in all.

    Encodes and decodes a sample of the tensor, and adds the time to send the result.

    Parameters
    ----------
    array, rate, lossy, dask_compresses
        As for `pack`; the rate is known.
    """
    sample = _sample(array)
    seconds = {"raw": array.nbytes / rate}
    shares: dict[str, float] = {}
    for encoding in _candidates(sample, lossy):
        packing, packed = _timed(_PACK[encoding], sample)
        unpacking, _ = _timed(_UNPACK[encoding], packed, sample.dtype, sample.shape)
        shares[encoding] = sum(memoryview(frame).nbytes for frame in packed) / sample.nbytes
        samples = array.nbytes / sample.nbytes
        seconds[encoding] = shares[encoding] * array.nbytes / rate + samples * (packing + unpacking)
    best = min(seconds, key=lambda encoding: seconds[encoding])
    if seconds[best] < _MAX_RELATIVE_TIME * seconds["raw"]:
        return best
    return "masked" if dask_compresses and shares["lz4"] < _DASK_COMPRESSES_BELOW else "raw"


def apply_loss(array: Array, lossy: Lossy) -> Array:
    """Return the tensor as it arrives after a lossy encoding; other dtypes as they are."""
    if array.dtype not in (np.float32, np.float64):
        return array
    whole = np.ascontiguousarray(array)
    return _UNPACK[lossy](_PACK[lossy](whole), whole.dtype, whole.shape)


def _candidates(sample: Array, lossy: Lossy | None) -> list[str]:
    encodings = ["lz4"]
    if sample.dtype.itemsize > 1:
        encodings.append("shuffle")
        zeros = 1 - np.count_nonzero(_bits(sample)) / sample.size
        if zeros >= _MIN_ZEROS:
            encodings = ["lz4", "zeros"]
    if lossy is not None and sample.dtype in (np.float32, np.float64):
        encodings.append(lossy)
    return encodings


def _sample(array: Array) -> Array:
    """Return blocks of elements from all over the tensor, one after the other."""
    flat = array.reshape(-1)
    size = max(1, _SAMPLE_BYTES // array.itemsize)
    if flat.size <= _SAMPLE_BLOCKS * size:
        return flat
    starts = np.linspace(0, flat.size - size, _SAMPLE_BLOCKS).astype(int)
    return np.concatenate([flat[start : start + size] for start in starts])


def _timed(work: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work(*arguments)
    return time.perf_counter() - began, result


def _bits(array: Array) -> Array:
    """Return the elements as integers, so that -0.0 is not taken for zero."""
    kinds = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
    kind = kinds.get(array.dtype.itemsize)
    return array.view(np.uint8) if kind is None else array.view(kind)


def _bytes(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _as_array(frame: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    return np.frombuffer(frame, np.uint8).view(dtype).reshape(shape)


def _compressed(data: Any) -> bytes:
    packed: bytes = lz4.block.compress(data)
    return packed


def _masked(data: Any) -> Array:
    """Return bytes XOR the noise; applied twice it returns the bytes again."""
    source = np.frombuffer(data, np.uint8)
    result = np.empty_like(source)
    whole = source.size // _NOISE.nbytes * _NOISE.nbytes
    blocks = source[:whole].view(np.uint64).reshape(-1, _NOISE.size)
    np.bitwise_xor(blocks, _NOISE, out=result[:whole].view(np.uint64).reshape(-1, _NOISE.size))
    rest = source.size - whole
    np.bitwise_xor(source[whole:], _NOISE.view(np.uint8)[:rest], out=result[whole:])
    return result


def _pack_shuffle(array: Array) -> list[Any]:
    planes = array.reshape(-1).view(np.uint8).reshape(-1, array.itemsize)
    return [_compressed(np.ascontiguousarray(planes.T))]


def _unpack_shuffle(frames: list[Any], dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    planes = np.frombuffer(lz4.block.decompress(frames[0]), np.uint8).reshape(dtype.itemsize, -1)
    return np.ascontiguousarray(planes.T).reshape(-1).view(dtype).reshape(shape)


def _pack_zeros(array: Array) -> list[Any]:
    flat = _bits(array.reshape(-1))
    mask = flat != 0
    return [_bytes(np.packbits(mask)), _bytes(flat[mask])]


def _unpack_zeros(frames: list[Any], dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    flat = np.zeros(shape, dtype).reshape(-1)
    bits = _bits(flat)
    mask = np.unpackbits(np.frombuffer(frames[0], np.uint8), count=bits.size).view(bool)
    bits[mask] = np.frombuffer(frames[1], np.uint8).view(bits.dtype)
    return flat.reshape(shape)


def _pack_int8(array: Array) -> list[Any]:
    """Quantize symmetrically: value = level * scale, level in -127 to 127, a scale per channel."""
    channels = _by_channel(array)
    with np.errstate(invalid="ignore"):
        largest = np.nanmax(np.abs(channels), axis=(0, 2), initial=0, where=np.isfinite(channels))
        scale = (np.where(largest > 0, largest, 1) / 127).astype(np.float32)
        levels = np.rint(np.nan_to_num(channels / scale[None, :, None]))
    return [_bytes(scale), _bytes(np.clip(levels, -127, 127).astype(np.int8))]


def _unpack_int8(frames: list[Any], dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    scale = np.frombuffer(frames[0], np.uint8).view(np.float32)
    levels = np.frombuffer(frames[1], np.uint8).view(np.int8).reshape(_channel_shape(shape))
    return (levels * scale[None, :, None]).astype(dtype).reshape(shape)


def _by_channel(array: Array) -> Array:
    return array.reshape(_channel_shape(array.shape))


def _channel_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return (rows, channels, elements of one channel of one row)."""
    if len(shape) < 2:
        return 1, 1, math.prod(shape)
    return shape[0], shape[1], math.prod(shape[2:])


_PACK: Mapping[str, Callable[[Array], list[Any]]] = {
    "raw": lambda array: [_bytes(array)],
    "masked": lambda array: [_masked(_bytes(array)).data],
    "lz4": lambda array: [_compressed(_bytes(array))],
    "shuffle": _pack_shuffle,
    "zeros": _pack_zeros,
    "float16": lambda array: [_bytes(array.astype(np.float16))],
    "int8": _pack_int8,
}
_UNPACK: Mapping[str, Callable[[list[Any], np.dtype[Any], tuple[int, ...]], Array]] = {
    "raw": lambda frames, dtype, shape: _as_array(frames[0], dtype, shape),
    "masked": lambda frames, dtype, shape: _as_array(_masked(frames[0]), dtype, shape),
    "lz4": lambda frames, dtype, shape: _as_array(lz4.block.decompress(frames[0]), dtype, shape),
    "shuffle": _unpack_shuffle,
    "zeros": _unpack_zeros,
    "float16": lambda frames, dtype, shape: _as_array(
        frames[0], np.dtype(np.float16), shape
    ).astype(dtype),
    "int8": _unpack_int8,
}
