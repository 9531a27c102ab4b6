"""TIFF files through tifffile: which tiles or strips hold a region, and files of tiles written.

The one module that imports tifffile, which is an extra.
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

from dask_onnx.core.errors import InputError
from dask_onnx.io.georeference import GEO_TAGS

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Region = tuple[slice, ...]
"""One slice for each axis, with start and stop and of step 1."""

TILE = 512
"""Height and width in pixels of the tiles that are written."""

_READ_BYTES = 16 * 2**20
"""Encoded tiles that are read from a file at a time, before they are decoded one by one."""
_ENCODE_BYTES = 32 * 2**20
"""Tiles that are compressed at a time, by tifffile's threads."""
_PALETTE = 3


@dataclass(frozen=True, slots=True)
class TiffLayout:
    """Where the pixels of a file's first series lie, at full resolution."""

    shape: tuple[int, ...]
    axes: str
    """tifffile's letters, one for each axis: "YXS", "SYX", "ZYX" and others."""
    stored_dtype: np.dtype[Any]
    """With the file's byte order."""
    pages: Sequence[int]
    """Numbers of the pages; a range where they follow each other."""
    page_axes: str
    """"YX", "YXS" (the bands of a pixel together) or "SYX" (one band after the other)."""
    offset: int | None
    """Byte where the pixels begin if they lie in the file in order and uncompressed."""
    tile: tuple[int, ...] | None
    """Shape of a tile or strip along the page's axes; None if any part can be read."""


def import_tifffile() -> Any:
    """Return the module tifffile.

    Raises
    ------
    InputError
        It is not installed.
    """
    try:
        import tifffile  # an extra: only who reads or writes TIFF needs it
    except ImportError:
        raise InputError(
            "TIFF needs the package tifffile, which is not installed",
            "pip install 'dask-onnx[tiff]', on the workers too",
        ) from None
    return tifffile


def inspect_tiff(path: Path, *, palette_indices: bool = False) -> TiffLayout:
    """Return the layout of a file's first series.

    Parameters
    ----------
    palette_indices : bool
        Take the pixels of a file with a palette for what they are: numbers of colours or classes.

    Raises
    ------
    InputError
        Not a TIFF file, or one that cannot be read: its compression, its sample format, a palette,
        a series that is spread over several files.
    """
    with _opened(path) as tiff:
        if not tiff.series or 0 in tiff.series[0].shape:
            raise InputError(f"{path} has no picture", "check the file")
        series = tiff.series[0]
        page = series.keyframe
        if page.photometric == _PALETTE and not palette_indices:
            raise InputError(
                f"the pixels of {path} are numbers of colours in a palette",
                "convert it to grey or RGB, or pass palette_indices=True if they are classes",
            )
        _require_decoder(page, path)
        offset = None if series.dataoffset is None else int(series.dataoffset)
        if offset is None:
            _require_plain_pages(series, page, path)
        elif offset + series.nbytes > path.stat().st_size:
            raise InputError(
                f"{path} has {path.stat().st_size:,} bytes, and its pixels end at "
                f"{offset + series.nbytes:,}",
                "the file is cut short: copy it again",
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
    """Return the pixels of a region, in this machine's byte order.

    Reads the tiles or strips that the region touches, or its own bytes where the file is not
    compressed and in order.
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
            except Exception as error:  # codecs raise errors of their own
                window = ", ".join(f"{part.start}:{part.stop}" for part in region[leading:])
                raise InputError(
                    f"pixels [{window}] of page {layout.pages[number]} of {path} cannot be "
                    f"decoded: {error}",
                    "check the file: it may be damaged, or cut short",
                ) from error
    return pixels


def _read_page(page: Any, axes: str, region: Region, target: Array) -> None:
    """Decode the tiles or strips of a page that a region touches into `target`."""
    window = dict(zip(axes, region, strict=True))
    rows, columns, bands = window["Y"], window["X"], window.get("S", slice(0, 1))
    planar = axes == "SYX"
    # The axes of every target become plane, y, x, sample.
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
            into[...] = page.nodata  # the file leaves out tiles without data
        else:
            into[...] = pixels[
                0,
                down.start - top : down.stop - top,
                across.start - left : across.stop - left,
                slice(None) if planar else bands,
            ]


def _segment_numbers(page: Any, rows: slice, columns: slice, planes: slice) -> list[int]:
    """Return which tiles or strips hold a region, by their place in the file's table."""
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
    height, width = _segment_shape(page)
    samples = {"YX": (), "YXS": (page.shape[-1],)}
    return (1, height, width) if page.axes == "SYX" else (height, width, *samples[page.axes])


def _opened(path: Path) -> Any:
    tifffile = import_tifffile()
    try:
        return tifffile.TiffFile(path)
    except tifffile.TiffFileError as error:
        raise InputError(f"{path} is not a TIFF file: {error}", "check the file") from error


def _require_decoder(page: Any, path: Path) -> None:
    without_codecs = importlib.util.find_spec("imagecodecs") is None
    try:
        page.decode(None, 0)
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
        ) from error


def _require_fallback(page: Any) -> None:
    """Raise ImportError where tifffile's own decoder lacks a module, as it finds when it decodes.

    Any other error is of a decoder that is there, about data that are none.
    """
    try:
        page.decode(b"", 0)
    except ImportError:
        raise
    except Exception as error:
        log.debug("compression %s has a decoder: %s", page.compression, error)


def _require_plain_pages(series: Any, page: Any, path: Path) -> None:
    """Refuse what would need more than the tiles of one page after the other."""
    pages = list(series.pages)
    leading = series.shape[: len(series.shape) - len(page.shape)]
    if series.is_multifile or any(p is None or len(p.treeindex) > 1 for p in pages):
        raise InputError(
            f"{path} has pages in other files, or lacks some", "save it as one file, or as zarr"
        )
    if (
        page.axes not in ("YX", "YXS", "SYX")
        or page.imagedepth > 1
        or series.transform is not None
        or tuple(series.shape[len(leading) :]) != tuple(page.shape)
        or math.prod(leading) != len(pages)
    ):
        raise InputError(
            f"{path} has pixels in an order that is not read by blocks: axes {series.axes}, shape "
            f"{series.shape}, {len(pages)} pages of {page.shape}",
            "save it as a plain stack of pages, or as zarr",
        )


def _numbers(pages: list[int]) -> Sequence[int]:
    """Return page numbers as a range where they are one: it travels in each task."""
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
        From plane, first row and last row to pixels of shape (rows, width) or
        (rows, width, bands); with `planar` the plane is the band, else 0.
    shape : tuple of int
        (height, width), (height, width, bands), or with `planar` (bands, height, width).
    tags : sequence of tuple
        Further tags, as tifffile's ``extratags``.
    compression : {"deflate", None}
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
    """Yield tiles in the order of the file; those at the lower and right edges end in zeros."""
    for plane in range(planes):
        for top in range(0, height, TILE):
            rows = read_rows(plane, top, min(top + TILE, height))
            for left in range(0, width, TILE):
                part = rows[:, left : left + TILE]
                tile = np.zeros(shape, dtype)
                tile[: part.shape[0], : part.shape[1]] = part.reshape(*part.shape[:2], *shape[2:])
                yield tile
