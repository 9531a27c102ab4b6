"""TIFF files: the tiles or strips of a region are read, and tiled files are written.

The only module that imports tifffile, an optional package.
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.io.georeference import GEO_TAGS
from dask_onnx.io.optional_packages import require_package

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Region = tuple[slice, ...]
"""One slice with start, stop and step 1 for each axis."""

TILE = 512
"""Height and width of written tiles in pixels."""

_READ_BYTES = 16 * 2**20
"""Bytes of encoded tiles that are read from a file at a time."""
_ENCODE_BYTES = 32 * 2**20
"""Bytes of tiles that are compressed at a time, by tifffile's threads."""
_PALETTE = 3
"""Value of the tag PhotometricInterpretation for palette colours."""


@dataclass(frozen=True, slots=True)
class TiffLayout:
    """Layout of the pixels of a file's first series, at full resolution."""

    shape: tuple[int, ...]
    """Shape of the series."""
    axes: str
    """tifffile's letters, one for each axis: "YXS", "SYX", "ZYX" and others."""
    stored_dtype: np.dtype[Any]
    """Dtype in the file's byte order."""
    pages: Sequence[int]
    """Indices of the pages in the file; a range if they are evenly spaced."""
    page_axes: str
    """"YX", "YXS" (the bands of a pixel together) or "SYX" (one band after the other)."""
    offset: int | None
    """Byte offset of the pixels if they are uncompressed and in order; None otherwise."""
    tile: tuple[int, ...] | None
    """Shape of a tile or strip along the page's axes; None if any part can be read."""


def import_tifffile() -> Any:
    """Return the module tifffile.

    Raises
    ------
    InputError
        It is not installed.
    """
    require_package("tifffile", "TIFF")
    import tifffile  # optional: only TIFF files need it

    return tifffile


def palette_error(path: Path) -> InputError:
    """Return the error for a file whose pixels are palette indices."""
    return InputError(
        f"the pixels of {path} are indices of colours in a palette",
        "convert it to grey or RGB, or pass palette_indices=True if they are classes",
        option="palette_indices",
        suggestions=[Suggestion("palette_indices", True)],
    )


def inspect_tiff(path: Path, *, palette_indices: bool = False) -> TiffLayout:
    """Return the layout of a file's first series.

    Parameters
    ----------
    palette_indices : bool
        True to accept palette indices as pixels.

    Raises
    ------
    InputError
        Not a TIFF file, or one that cannot be read because of its compression, sample format,
        palette or order of pages; or it is truncated.
    """
    with _opened(path) as tiff:
        if not tiff.series or 0 in tiff.series[0].shape:
            raise InputError(f"{path} contains no image", "check the file", option="path")
        series = tiff.series[0]
        page = series.keyframe
        if page.photometric == _PALETTE and not palette_indices:
            raise palette_error(path)
        _require_decoder(page, path)
        offset = None if series.dataoffset is None else int(series.dataoffset)
        if offset is None:
            _require_plain_pages(series, page, path)
        elif (end := offset + series.nbytes) > (size := path.stat().st_size):
            raise InputError(
                f"{path} has {size:,} bytes, and its pixels end at byte {end:,}",
                "copy the file again: it is truncated",
                option="path",
                numbers={"file_bytes": size, "needed_bytes": int(end)},
            )
        return TiffLayout(
            shape=tuple(map(int, series.shape)),
            axes=series.axes,
            stored_dtype=np.dtype(f"{tiff.byteorder}{series.dtype.char}"),
            pages=_numbers([p.index for p in series.pages]) if offset is None else range(1),
            page_axes=page.axes,
            offset=offset,
            tile=_tile(page) if offset is None else None,
        )


def read_geo_tags(path: Path) -> tuple[dict[int, Any], int, int]:
    """Return the geographic tags by code, and the height and width of the first page."""
    with _opened(path) as tiff:
        page = tiff.pages[0]
        tags = {code: page.tags[code].value for code in GEO_TAGS if code in page.tags}
        return tags, int(page.imagelength), int(page.imagewidth)


def read_region(path: str, layout: TiffLayout, region: Region) -> Array:
    """Return the pixels of a region, in native byte order.

    Reads the tiles or strips that the region touches, or only the region's bytes if the pixels are
    uncompressed and in order.

    Raises
    ------
    InputError
        A tile or strip cannot be decoded.
    """
    dtype = layout.stored_dtype.newbyteorder("=")
    if layout.offset is not None:
        mapped: Array = np.memmap(path, layout.stored_dtype, "r", layout.offset, layout.shape)
        return np.array(mapped[region], dtype)
    leading = len(layout.axes) - len(layout.page_axes)
    stack = layout.shape[:leading]
    places = itertools.product(*(range(part.start, part.stop) for part in region[:leading]))
    pixels: Array = np.empty([part.stop - part.start for part in region], dtype)
    targets = pixels.reshape(-1, *pixels.shape[leading:])
    with _opened(Path(path)) as tiff:
        for target, place in zip(targets if leading else [pixels], places, strict=True):
            number = int(np.ravel_multi_index(place, stack)) if leading else 0
            page = tiff.pages[layout.pages[number]]
            try:
                _read_page(page, layout.page_axes, region[leading:], target)
            except Exception as error:  # each codec raises errors of its own
                window = ", ".join(f"{part.start}:{part.stop}" for part in region[leading:])
                raise InputError(
                    f"pixels [{window}] of page {layout.pages[number]} of {path} cannot be "
                    f"decoded: {error}",
                    "copy the file again: it may be damaged or truncated",
                    option="path",
                    reason=str(error),
                    numbers={"page": layout.pages[number]},
                ) from error
    return pixels


def _read_page(page: Any, axes: str, region: Region, target: Array) -> None:
    """Decode the tiles or strips of a page that a region touches into `target`."""
    window = dict(zip(axes, region, strict=True))
    rows, columns, bands = window["Y"], window["X"], window.get("S", slice(0, 1))
    planar = axes == "SYX"
    # Give the target the axes (plane, y, x, sample) of decoded segments.
    target = target[..., None] if planar else target[None]
    target = target[..., None] if axes == "YX" else target
    numbers = _segment_numbers(page, rows, columns, bands if planar else slice(0, 1))
    segments = page.parent.filehandle.read_segments(
        [page.dataoffsets[number] for number in numbers],
        [page.databytecounts[number] for number in numbers],
        numbers,
        buffersize=_READ_BYTES,
    )
    tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
    for data, number in segments:
        pixels, (plane, _, top, left, _), (_, height, width, _) = page.decode(
            data, number, **tables
        )
        down = slice(max(top, rows.start), min(top + height, rows.stop))
        across = slice(max(left, columns.start), min(left + width, columns.stop))
        into = target[
            plane - bands.start if planar else 0,
            down.start - rows.start : down.stop - rows.start,
            across.start - columns.start : across.stop - columns.start,
        ]
        if pixels is None:
            into[...] = page.nodata  # a sparse file omits tiles without data
        else:
            into[...] = pixels[
                0,
                down.start - top : down.stop - top,
                across.start - left : across.stop - left,
                slice(None) if planar else bands,
            ]


def _segment_numbers(page: Any, rows: slice, columns: slice, planes: slice) -> list[int]:
    """Return the indices, in the file's table, of the tiles or strips that a region touches."""
    _, _, height, width, _ = page.shaped
    *_, length, across = _segment_shape(page)
    per_row = math.ceil(width / across)
    per_plane = math.ceil(height / length) * per_row
    return [
        plane * per_plane + row * per_row + column
        for plane in range(planes.start, planes.stop)
        for row in range(rows.start // length, math.ceil(rows.stop / length))
        for column in range(columns.start // across, math.ceil(columns.stop / across))
    ]


def _segment_shape(page: Any) -> tuple[int, int]:
    """Return the height and width of a tile or strip in pixels."""
    if page.is_tiled:
        return int(page.tilelength), int(page.tilewidth)
    return min(int(page.rowsperstrip), int(page.imagelength)), int(page.imagewidth)


def _tile(page: Any) -> tuple[int, ...]:
    """Return the shape of a tile or strip along the page's axes."""
    height, width = _segment_shape(page)
    samples = {"YX": (), "YXS": (page.shape[-1],)}
    return (1, height, width) if page.axes == "SYX" else (height, width, *samples[page.axes])


def _opened(path: Path) -> Any:
    tifffile = import_tifffile()
    try:
        return tifffile.TiffFile(path)
    except tifffile.TiffFileError as error:
        raise InputError(
            f"{path} is not a TIFF file: {error}",
            "check the file",
            option="path",
            reason=str(error),
        ) from error


def _require_decoder(page: Any, path: Path) -> None:
    """Raise an error unless tifffile can decode the page's tiles or strips."""
    without_codecs = importlib.util.find_spec("imagecodecs") is None
    try:
        page.decode(None, 0)  # no data: this only looks the decoder up
        if without_codecs:
            _require_fallback(page)
    except (ValueError, NotImplementedError, ImportError) as error:
        name = getattr(page.compression, "name", page.compression)
        raise InputError(
            f"{path} (compression {name}, predictor {int(page.predictor)}, "
            f"{page.bitspersample} bits) cannot be read: {error}",
            "pip install imagecodecs, on the workers too, or save the file with deflate"
            if without_codecs
            else "save the file uncompressed or with deflate",
            option="path",
            reason=str(error),
        ) from error


def _require_fallback(page: Any) -> None:
    """Raise ImportError if tifffile's own decoder lacks a module, which only decoding shows.

    Any other error comes from a working decoder that rejects the empty data.
    """
    try:
        page.decode(b"", 0)
    except ImportError:
        raise
    except Exception as error:
        log.debug("compression %s has a decoder: %s", page.compression, error)


def _require_plain_pages(series: Any, page: Any, path: Path) -> None:
    """Raise an error unless the series is a stack of equal pages in this file."""
    pages = list(series.pages)
    leading = series.shape[: len(series.shape) - len(page.shape)]
    if series.is_multifile or any(p is None or len(p.treeindex) > 1 for p in pages):
        raise InputError(
            f"{path} has pages in other files, or lacks some",
            "save it as one file, or as zarr",
            option="path",
        )
    if (
        page.axes not in ("YX", "YXS", "SYX")
        or page.imagedepth > 1
        or series.transform is not None
        or tuple(series.shape[len(leading) :]) != tuple(page.shape)
        or math.prod(leading) != len(pages)
    ):
        raise InputError(
            f"{path} has pixels in an order that cannot be read by blocks: axes {series.axes}, "
            f"shape {series.shape}, {len(pages)} pages of {page.shape}",
            "save it as a plain stack of pages, or as zarr",
            option="path",
            numbers={"pages": len(pages)},
        )


def _numbers(pages: list[int]) -> Sequence[int]:
    """Return page indices as a range if evenly spaced, which keeps tasks small."""
    step = pages[1] - pages[0] if len(pages) > 1 else 1
    if step > 0:
        found = range(pages[0], pages[-1] + 1, step)
        if list(found) == pages:
            return found
    return tuple(pages)


def write_tiled(
    path: Path,
    read_rows: Callable[[int, int, int], Array],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    *,
    planar: bool,
    tags: Sequence[tuple[Any, ...]],
    compression: str | None,
) -> None:
    """Write a tiled BigTIFF, holding one row of tiles at a time.

    Parameters
    ----------
    read_rows : callable
        Takes a plane, the first row and the row after the last; returns pixels of shape
        (rows, width) or (rows, width, bands). The plane is the band if `planar`, else 0.
    shape : tuple of int
        (height, width) or (height, width, bands); (bands, height, width) if `planar`.
    dtype : numpy.dtype
        Dtype of the pixels in the file.
    planar : bool
        True if bands follow each other instead of being interleaved by pixel.
    tags : sequence of tuple
        Additional tags, as tifffile's ``extratags``.
    compression : {"deflate", None}
        Compression of the tiles.
    """
    height, width = shape[1:] if planar else shape[:2]
    bands = shape[0] if planar else (*shape, 1)[2]
    samples = () if planar or bands == 1 else (bands,)
    pages = (height, width) if bands == 1 else shape
    with import_tifffile().TiffWriter(path, bigtiff=True) as writer:
        writer.write(
            _tiles(read_rows, height, width, bands if planar else 1, (TILE, TILE, *samples), dtype),
            shape=pages,
            dtype=dtype,
            tile=(TILE, TILE),
            planarconfig=("separate" if planar else "contig") if bands > 1 else None,
            photometric="rgb" if bands == 3 and dtype == np.uint8 else "minisblack",
            compression={"deflate": "zlib", None: None}[compression],
            extratags=list(tags),
            metadata=None,
            buffersize=_ENCODE_BYTES,
        )


def _tiles(
    read_rows: Callable[[int, int, int], Array],
    height: int,
    width: int,
    planes: int,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
) -> Iterator[Array]:
    """Yield tiles in the order of the file, padded with zeros at the lower and right edges."""
    for plane in range(planes):
        for top in range(0, height, TILE):
            rows = read_rows(plane, top, min(top + TILE, height))
            for left in range(0, width, TILE):
                part = rows[:, left : left + TILE]
                tile = np.zeros(shape, dtype)
                tile[: part.shape[0], : part.shape[1]] = part.reshape(*part.shape[:2], *shape[2:])
                yield tile
