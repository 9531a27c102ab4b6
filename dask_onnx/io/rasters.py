"""Pictures larger than memory, read by blocks: TIFF, npy, zarr; and whole: PNG, JPEG and others.

Opening reads metadata only. A task gets a path and the slices of its block, and reads the tiles,
strips or chunks that the block needs.
"""

from __future__ import annotations

import hashlib
import importlib.util
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
from dask.array.core import normalize_chunks

from dask_onnx.core.errors import InputError
from dask_onnx.io.georeference import attributes_from_tags, pixel_coordinates
from dask_onnx.io.raster_axes import checked_dims, names_of_letters, to_channels_first
from dask_onnx.io.sources import Array, FileArray, ZarrArray, open_source, see
from dask_onnx.io.tiff import Region, TiffLayout, inspect_tiff, read_geo_tags, read_region

if TYPE_CHECKING:
    import xarray

TIFF_SUFFIXES = frozenset(".btf .svs .tf8 .tif .tiff".split())
_TIFF_BEGINNINGS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True, slots=True)
class RasterArray(FileArray):
    """A picture in a file, indexed by blocks along every axis."""

    dims: tuple[str, ...]
    """Names of the axes as stored: "y", "x", "band" where there are several, and others."""
    storage_chunks: tuple[int, ...] | None
    """Shape of a tile, strip or chunk, which is read as a whole; None if any part can be read."""

    @abstractmethod
    def read_block(self, region: Region) -> Array:
        """Return the pixels of a region, read from the file."""

    def read_rows(self, start: int, stop: int) -> Array:
        return self.read_block((slice(start, stop), *(slice(0, size) for size in self.shape[1:])))

    def to_blocks(self, chunks: Any = "auto") -> da.Array:
        """Return a lazy array with blocks of the given shape.

        Parameters
        ----------
        chunks : as for ``dask.array.from_array``
            "auto" takes whole tiles, strips or chunks of the file, up to Dask's
            ``array.chunk-size`` of bytes.
        """
        blocks = normalize_chunks(
            chunks, self.shape, dtype=self.dtype, previous_chunks=self.storage_chunks
        )
        array: da.Array = da.from_array(
            self,
            chunks=blocks,
            name=f"read-{self.token}-{hashlib.sha256(repr(blocks).encode()).hexdigest()[:16]}",
            getitem=read_unchanged,
            inline_array=True,
            meta=np.empty((0,) * self.ndim, self.dtype),
        )
        return array


def read_unchanged(source: RasterArray, region: Region) -> Array:
    """Return the pixels of a region if the file is the one that was opened.

    Raises
    ------
    InputError
        The file is not there, or has changed; or a part of it cannot be decoded.
    """
    for file in source.files:
        if problem := file.problem():
            raise InputError(problem, "every worker must see the file that was opened, unchanged")
    return source.read_block(region)


@dataclass(frozen=True, slots=True)
class TiffRaster(RasterArray):
    """The first series of a TIFF file at full resolution: a page, or a stack of equal pages."""

    layout: TiffLayout

    def read_block(self, region: Region) -> Array:
        return read_region(self.files[0].path, self.layout, region)


@dataclass(frozen=True, slots=True)
class NpyRaster(RasterArray):
    """One .npy file, mapped while a block is copied from it."""

    def read_block(self, region: Region) -> Array:
        mapped: Array = np.load(self.files[0].path, mmap_mode="r")
        return np.array(mapped[region])


@dataclass(frozen=True, slots=True)
class ZarrRaster(RasterArray):
    """A zarr array by path or URL."""

    source: ZarrArray

    def read_block(self, region: Region) -> Array:
        pixels: Array = np.asarray(_zarr_array(self.source)[region])
        return pixels


@dataclass(frozen=True, slots=True)
class PictureRaster(RasterArray):
    """A file that pillow reads, which decodes it as a whole.

    One task holds all of it, height x width x bands x itemsize bytes, and cuts it into blocks: such
    a file must fit one worker.
    """

    def read_block(self, region: Region) -> Array:
        with _opened_picture(Path(self.files[0].path)) as image:
            pixels: Array = np.asarray(image)[region]
        return pixels

    def to_blocks(self, chunks: Any = "auto") -> da.Array:
        """Return a lazy array with blocks of the given shape, cut from one that is read whole."""
        # The explicit class: a dataclass with slots is another class than `super()` looks for.
        blocks: da.Array = RasterArray.to_blocks(self, -1).rechunk(chunks)
        return blocks


def open_raster(
    path: str | Path,
    chunks: Any = "auto",
    *,
    dims: Sequence[str] | None = None,
    palette_indices: bool = False,
) -> da.Array:
    """Return a picture as a lazy array, read by blocks in the tasks.

    Parameters
    ----------
    path : str or Path
        TIFF (GeoTIFF, COG, BigTIFF), .npy, .zarr (or the URL of one), or a picture that pillow
        reads; see `open_raster_source`. The workers must see it under this path.
    chunks : as for ``dask.array.from_array``
        "auto" takes whole tiles, strips or chunks of the file.
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
    """Return a picture's shape, dtype, names of axes and way of reading; reads metadata only.

    A TIFF file gives its first series at full resolution, without overviews; a stack of equal pages
    has a leading axis. A zarr group must hold one array, or the path name one in it. An animation
    gives its first frame.

    Parameters
    ----------
    dims : sequence of str, optional
        Names of the axes, where the file does not tell: .npy, and zarr without names. By default
        ("y", "x") for two axes and ("band", "y", "x") for three.
    palette_indices : bool
        Take a palette's indices as pixels. A file with a palette is refused otherwise, since its
        pixels are numbers of colours and not brightness.

    Raises
    ------
    InputError
        Nothing there; not a picture; a compression, palette or order of pages that is not read; a
        package that is not installed.
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
    return _open_picture(local, palette_indices)


def raster_attributes(path: str | Path) -> dict[str, Any]:
    """Return where a raster lies on the ground, as `dask_onnx.io.georeference` describes it.

    Returns
    -------
    dict
        A TIFF file's size and geographic tags; a zarr array's own attributes; empty for others.

    Raises
    ------
    InputError
        Nothing there, or not what its name says.
    """
    text, local = str(path), _existing(path)
    if local is None or local.is_dir():
        return dict(_zarr_array(_one_array(text)).attrs)
    return attributes_from_tags(*read_geo_tags(local)) if _is_tiff(local) else {}


def open_raster_xarray(
    path: str | Path,
    chunks: Any = "auto",
    *,
    dims: Sequence[str] | None = None,
    palette_indices: bool = False,
) -> xarray.DataArray:
    """Return a picture as a lazy DataArray of dims (..., "band", "y", "x").

    Coordinates are the centres of the pixels, and bands count from 1, as in rioxarray. The
    attributes are those of `raster_attributes`; the reference system stands there as "crs" and the
    geo keys, as no package that would expand it to text is needed.

    Parameters
    ----------
    path, chunks, dims, palette_indices
        As for `open_raster`; `chunks` are along the axes as stored.

    Raises
    ------
    InputError
        As for `open_raster_source`; or xarray is not installed.
    """
    if importlib.util.find_spec("xarray") is None:
        raise InputError("xarray is not installed", "pip install 'dask-onnx[xarray]'")
    import xarray  # an extra

    source = open_raster_source(path, dims=dims, palette_indices=palette_indices)
    array = to_channels_first(source.to_blocks(chunks), source.dims)
    names = (*(dim for dim in source.dims if dim not in ("band", "y", "x")), "band", "y", "x")
    attributes = raster_attributes(path)
    coordinates: dict[str, Any] = {"band": np.arange(1, array.shape[-3] + 1)}
    if tuple(attributes.get(name) for name in ("height", "width")) == array.shape[-2:]:
        coordinates |= pixel_coordinates(attributes)
    return xarray.DataArray(array, coordinates, names, Path(str(path)).stem, attributes)


def _existing(path: str | Path) -> Path | None:
    """Return the absolute path of what is there; None for a URL."""
    if "://" in str(path):
        return None
    local = Path(path).expanduser().absolute()
    if not local.exists():
        raise InputError(f"the input {local} does not exist", "check the path")
    return local


def _is_tiff(path: Path) -> bool:
    with path.open("rb") as file:
        return path.suffix.lower() in TIFF_SUFFIXES or file.read(4) in _TIFF_BEGINNINGS


def _open_tiff(path: Path, palette_indices: bool) -> TiffRaster:
    layout = inspect_tiff(path, palette_indices=palette_indices)
    tile = layout.tile
    return TiffRaster(
        files=(see(path),),
        shape=layout.shape,
        dtype=layout.stored_dtype.newbyteorder("="),
        dims=names_of_letters(layout.axes),
        storage_chunks=tile and ((1,) * (len(layout.shape) - len(tile)) + tile),
        layout=layout,
    )


def _one_array(text: str) -> ZarrArray:
    arrays = open_source(text)
    if len(arrays) > 1:
        raise InputError(
            f"the zarr group {text} has {len(arrays)} arrays: {', '.join(sorted(arrays))}",
            f"name one of them: {text.rstrip('/')}/{min(arrays)}",
        )
    (array,) = arrays.values()
    if not isinstance(array, ZarrArray):
        raise InputError(f"{text} is not a zarr array", "give .zarr, .tif, .npy or a picture")
    return array


def _zarr_array(source: ZarrArray) -> Any:
    import zarr  # an extra: `open_source` has found it

    node = zarr.open(source.url, mode="r")
    return node if source.member is None else node[source.member]


def _open_zarr(text: str, dims: Sequence[str] | None) -> ZarrRaster:
    source = _one_array(text)
    array = _zarr_array(source)
    named = getattr(array.metadata, "dimension_names", None)
    named = named or array.attrs.get("_ARRAY_DIMENSIONS")
    names = named if dims is None and named and {"y", "x"} <= set(named) else dims
    return ZarrRaster(
        source.files,
        source.shape,
        source.dtype,
        checked_dims(source.shape, names, text),
        tuple(array.chunks),
        source,
    )


def _open_picture(path: Path, palette_indices: bool) -> PictureRaster:
    with _opened_picture(path) as image:
        mode, bands, size = image.mode, image.getbands(), image.size
    if mode in ("P", "PA") and not palette_indices:
        raise InputError(
            f"the pixels of {path} are numbers of colours in a palette",
            "convert it to grey or RGB, or pass palette_indices=True if they are classes",
        )
    from PIL import ImageMode

    shape = (size[1], size[0], *((len(bands),) if len(bands) > 1 else ()))
    dims = ("y", "x", "band")[: len(shape)]
    dtype = np.dtype(ImageMode.getmode(mode).typestr).newbyteorder("=")
    return PictureRaster((see(path),), shape, dtype, dims, None)


def _opened_picture(path: Path) -> Any:
    if importlib.util.find_spec("PIL") is None:
        raise InputError(f"{path} needs the package pillow", "pip install 'dask-onnx[images]'")
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(path)
    except UnidentifiedImageError as error:
        raise InputError(
            f"{path} is not a picture that can be read", "give .tif, .npy, .zarr or a picture"
        ) from error
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{path} is too large to be read whole: {error}", "save it as a tiled TIFF"
        ) from error
