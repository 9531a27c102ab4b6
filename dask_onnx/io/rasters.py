"""Rasters larger than memory, read by blocks (TIFF, npy, zarr) or whole (PNG, JPEG and others).

Opening reads metadata only. A task carries a path and the slices of its block, and reads the tiles,
strips or chunks that the block touches.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
from dask.array.core import normalize_chunks

from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.files import is_url, stat_file
from dask_onnx.core.meters import metered
from dask_onnx.io.georeference import attributes_from_tags, pixel_coordinates
from dask_onnx.io.input_formats import open_source
from dask_onnx.io.optional_packages import require_package
from dask_onnx.io.raster_axes import checked_dims, dims_of_letters, to_channels_first
from dask_onnx.io.sources import Array, FileArray, ZarrArray
from dask_onnx.io.tiff import (
    Region,
    TiffLayout,
    inspect_tiff,
    palette_error,
    read_geo_tags,
    read_region,
)

if TYPE_CHECKING:
    import xarray

TIFF_SUFFIXES = frozenset(".btf .svs .tf8 .tif .tiff".split())
"""Endings of files that are read as TIFF."""
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of TIFF and BigTIFF files in both byte orders."""


@dataclass(frozen=True, slots=True)
class RasterArray(FileArray):
    """A raster in a file, indexed by blocks along every axis."""

    dims: tuple[str, ...]
    """Names of the axes as stored: "y", "x", "band" if there are several bands, and others."""
    storage_chunks: tuple[int, ...] | None
    """Shape of the tiles, strips or chunks, which are read as a whole; None if any part of the file
    can be read."""

    @abstractmethod
    def read_block(self, region: Region) -> Array:
        """Return the pixels of a region, read from the file."""

    def read_rows(self, start: int, stop: int) -> Array:
        """Return entries `start` to `stop` (exclusive) of the first axis."""
        return self.read_block((slice(start, stop), *(slice(0, size) for size in self.shape[1:])))

    def to_blocks(self, chunks: Any = "auto") -> da.Array:
        """Return a lazy array with blocks of the given shape.

        Parameters
        ----------
        chunks : as for ``dask.array.from_array``
            "auto" uses multiples of the file's tiles, strips or chunks, up to Dask's
            ``array.chunk-size`` in bytes.
        """
        blocks = normalize_chunks(
            chunks, self.shape, dtype=self.dtype, previous_chunks=self.storage_chunks
        )
        array: da.Array = da.from_array(
            self,
            chunks=blocks,
            name=self.layer_name(blocks),
            getitem=read_unchanged,
            inline_array=True,
            meta=np.empty((0,) * self.ndim, self.dtype),
        )
        return array


@metered("read")
def read_unchanged(source: RasterArray, region: Region) -> Array:
    """Return the pixels of a region if the file is still the one that was opened.

    Raises
    ------
    InputError
        The file does not exist or has changed, or a part of it cannot be decoded.
    """
    for file in source.files:
        if problem := file.problem():
            raise InputError(
                problem,
                "open the raster again, and make its path accessible to all workers",
                option="path",
                numbers={"expected_bytes": file.size},
            )
    return source.read_block(region)


@dataclass(frozen=True, slots=True)
class TiffRaster(RasterArray):
    """The first series of a TIFF file at full resolution: a page, or a stack of equal pages."""

    layout: TiffLayout
    """Layout of the pixels in the file."""

    def read_block(self, region: Region) -> Array:
        """Return the pixels of a region, decoded from its tiles or strips."""
        return read_region(self.files[0].path, self.layout, region)


@dataclass(frozen=True, slots=True)
class NpyRaster(RasterArray):
    """One .npy file, memory-mapped while a block is copied from it."""

    def read_block(self, region: Region) -> Array:
        """Return a copy of the pixels of a region."""
        mapped: Array = np.load(self.files[0].path, mmap_mode="r", allow_pickle=False)
        return np.array(mapped[region])


@dataclass(frozen=True, slots=True)
class ZarrRaster(RasterArray):
    """A zarr array at a path or URL."""

    source: ZarrArray
    """The array, as a data set of rows."""

    def read_block(self, region: Region) -> Array:
        """Return the pixels of a region, decoded from its chunks."""
        pixels: Array = np.asarray(self.source.open()[region])
        return pixels


@dataclass(frozen=True, slots=True)
class ImageRaster(RasterArray):
    """An image file of another format, which pillow decodes as a whole.

    One task holds the whole image, height x width x bands x itemsize bytes, and cuts it into
    blocks, so the image must fit into the memory of one worker.
    """

    def read_block(self, region: Region) -> Array:
        """Return the pixels of a region of the decoded image."""
        with _opened_image(Path(self.files[0].path)) as image:
            pixels: Array = np.asarray(image)[region]
        return pixels

    def to_blocks(self, chunks: Any = "auto") -> da.Array:
        """Return a lazy array with blocks of the given shape, cut from the whole image.

        Parameters
        ----------
        chunks : as for ``dask.array.from_array``
        """
        # `super()` without arguments fails in a dataclass with slots, which is a new class.
        blocks: da.Array = RasterArray.to_blocks(self, -1).rechunk(chunks)
        return blocks


def open_raster(
    path: str | Path,
    chunks: Any = "auto",
    *,
    dims: Sequence[str] | None = None,
    palette_indices: bool = False,
) -> da.Array:
    """Return a raster as a lazy array that is read by blocks in the tasks.

    Parameters
    ----------
    path : str or Path
        TIFF (GeoTIFF, COG, BigTIFF), .npy, .zarr (or the URL of one), or an image that pillow
        reads; see `open_raster_source`. All workers must be able to read this path.
    chunks : as for ``dask.array.from_array``
        "auto" uses multiples of the file's tiles, strips or chunks.
    dims, palette_indices : as for `open_raster_source`

    Returns
    -------
    dask.array.Array
        Shape (height, width), (height, width, bands) or (bands, height, width) as stored, with
        leading axes for a stack; the file's dtype in native byte order.

    Raises
    ------
    InputError
        As for `open_raster_source`.
    """
    source = open_raster_source(path, dims=dims, palette_indices=palette_indices)
    return source.to_blocks(chunks)


def open_raster_source(
    path: str | Path, *, dims: Sequence[str] | None = None, palette_indices: bool = False
) -> RasterArray:
    """Open a raster: its shape, dtype, names of axes and reader. Reads metadata only.

    Of a TIFF file, the first series is opened at full resolution, without overviews; a stack of
    equal pages has a leading axis. A zarr group must contain a single array, or the path must name
    an array in it. Of an animation, the first frame is opened.

    Parameters
    ----------
    path : str or Path
        As for `open_raster`.
    dims : sequence of str, optional
        Names of the axes if the file has none: .npy, and zarr without names. By default ("y", "x")
        for two axes and ("band", "y", "x") for three.
    palette_indices : bool
        True to accept palette indices as pixels, such as classes. By default a file with a
        palette is refused, since its pixels are indices of colours and not brightness.

    Raises
    ------
    InputError
        Nothing is there; not a raster; an unsupported compression, palette or order of pages; or a
        package is missing.
    """
    text, local = str(path), _existing(path)
    if local is None or local.is_dir():
        return _open_zarr(text, dims)
    if local.suffix == ".npy":
        array = open_source(text)[""]
        names = checked_dims(array.shape, dims, text)
        return NpyRaster(array.files, array.shape, array.dtype, names, None)
    if _is_tiff(local):
        return _open_tiff(local, palette_indices)
    return _open_image(local, palette_indices)


def raster_attributes(path: str | Path) -> dict[str, Any]:
    """Return the georeference of a raster, as `dask_onnx.io.georeference` describes it.

    Parameters
    ----------
    path : str or Path
        As for `open_raster`.

    Returns
    -------
    dict
        Size and geographic tags of a TIFF file, or attributes of a zarr array; empty for others.

    Raises
    ------
    InputError
        Nothing is there, or the content does not match the ending of the path.
    """
    text, local = str(path), _existing(path)
    if local is None or local.is_dir():
        return dict(_single_array(text).open().attrs)
    return attributes_from_tags(*read_geo_tags(local)) if _is_tiff(local) else {}


def open_raster_xarray(
    path: str | Path,
    chunks: Any = "auto",
    *,
    dims: Sequence[str] | None = None,
    palette_indices: bool = False,
) -> xarray.DataArray:
    """Return a raster as a lazy DataArray with dims (..., "band", "y", "x").

    Coordinates are the centres of the pixels, and bands are numbered from 1, as in rioxarray. The
    attributes are those of `raster_attributes`. They contain the reference system as "crs" and as
    geo keys; expanding it to WKT would need another package.

    Parameters
    ----------
    path, chunks, dims, palette_indices
        As for `open_raster`; `chunks` are along the axes as stored.

    Raises
    ------
    InputError
        As for `open_raster_source`; or xarray is not installed.
    """
    require_package("xarray", "open_raster_xarray")
    import xarray  # optional: only this function needs it

    source = open_raster_source(path, dims=dims, palette_indices=palette_indices)
    array = to_channels_first(source.to_blocks(chunks), source.dims)
    names = (*(dim for dim in source.dims if dim not in ("band", "y", "x")), "band", "y", "x")
    attributes = raster_attributes(path)
    coordinates: dict[str, Any] = {"band": np.arange(1, array.shape[-3] + 1)}
    if tuple(attributes.get(name) for name in ("height", "width")) == array.shape[-2:]:
        coordinates |= pixel_coordinates(attributes)
    return xarray.DataArray(array, coordinates, names, Path(str(path)).stem, attributes)


def _existing(path: str | Path) -> Path | None:
    """Return the absolute path of an existing file or folder; None for a URL."""
    if is_url(str(path)):
        return None
    local = Path(path).expanduser().absolute()
    if not local.exists():
        raise InputError(f"the input {local} does not exist", "check the path", option="path")
    return local


def _is_tiff(path: Path) -> bool:
    with path.open("rb") as file:
        return path.suffix.lower() in TIFF_SUFFIXES or file.read(4) in _TIFF_SIGNATURES


def _open_tiff(path: Path, palette_indices: bool) -> TiffRaster:
    layout = inspect_tiff(path, palette_indices=palette_indices)
    tile = layout.tile
    return TiffRaster(
        files=(stat_file(str(path)),),
        shape=layout.shape,
        dtype=layout.stored_dtype.newbyteorder("="),
        dims=dims_of_letters(layout.axes),
        storage_chunks=tile and ((1,) * (len(layout.shape) - len(tile)) + tile),
        layout=layout,
    )


def _single_array(text: str) -> ZarrArray:
    """Return the zarr array at a path or URL, or the single array of a group."""
    arrays = open_source(text)
    if len(arrays) > 1:
        raise InputError(
            f"the zarr group {text} has {len(arrays)} arrays: {', '.join(sorted(arrays))}",
            f"name one of them: {text.rstrip('/')}/{min(arrays)}",
            option="path",
            numbers={"arrays": len(arrays)},
            suggestions=[Suggestion("path", f"{text.rstrip('/')}/{name}") for name in arrays],
        )
    (array,) = arrays.values()
    if not isinstance(array, ZarrArray):
        raise InputError(
            f"{text} is not a zarr array", "pass .zarr, .tif, .npy or an image", option="path"
        )
    return array


def _open_zarr(text: str, dims: Sequence[str] | None) -> ZarrRaster:
    source = _single_array(text)
    array = source.open()
    # Format 3 stores the names of axes; in format 2, xarray stores them as an attribute.
    stored = getattr(array.metadata, "dimension_names", None)
    stored = stored or array.attrs.get("_ARRAY_DIMENSIONS")
    names = stored if dims is None and stored and {"y", "x"} <= set(stored) else dims
    return ZarrRaster(
        source.files,
        source.shape,
        source.dtype,
        checked_dims(source.shape, names, text),
        tuple(array.chunks),
        source,
    )


def _open_image(path: Path, palette_indices: bool) -> ImageRaster:
    with _opened_image(path) as image:
        mode, bands, size = image.mode, image.getbands(), image.size
    if mode in ("P", "PA") and not palette_indices:
        raise palette_error(path)
    from PIL import ImageMode  # optional: only images need it

    shape = (size[1], size[0], *((len(bands),) if len(bands) > 1 else ()))
    dims = ("y", "x", "band")[: len(shape)]
    dtype = np.dtype(ImageMode.getmode(mode).typestr).newbyteorder("=")
    return ImageRaster((stat_file(str(path)),), shape, dtype, dims, None)


def _opened_image(path: Path) -> Any:
    require_package("PIL", str(path))
    from PIL import Image, UnidentifiedImageError  # optional: only images need it

    try:
        return Image.open(path)
    except UnidentifiedImageError as error:
        raise InputError(
            f"{path} is not an image that can be read",
            "pass .tif, .npy, .zarr or an image",
            option="path",
            reason=str(error),
        ) from error
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{path} is too large to be read whole: {error}",
            "save it as a tiled TIFF",
            option="path",
            reason=str(error),
        ) from error
