"""Georeference of a raster: GeoTIFF tags as attributes, coordinates, and attributes as tags.

Attributes are plain numbers, strings and tuples, which xarray, zarr and JSON can store. The values
of tags are kept under the names in `GEO_TAGS`. These attributes are derived from them:

- ``height``, ``width``: size of the raster in pixels;
- ``transform``: (a, b, c, d, e, f) with x = a * column + b * row + c, y = d * column + e * row + f
  for the corners of pixels, in units of the coordinate reference system, as rasterio orders them;
- ``crs``: "EPSG:n", where the tags name a registered system;
- ``nodata``: the value of pixels without data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dask_onnx.core.errors import InputError

Transform = tuple[float, float, float, float, float, float]
"""Affine transform from pixel corners to coordinates, as the module describes it."""

GEO_TAGS: Mapping[int, str] = {
    33550: "ModelPixelScale",
    33922: "ModelTiepoint",
    34264: "ModelTransformation",
    34735: "GeoKeyDirectory",
    34736: "GeoDoubleParams",
    34737: "GeoAsciiParams",
    42112: "GDAL_METADATA",
    42113: "GDAL_NODATA",
}
"""Name of the attribute that keeps a tag's value, by TIFF tag code."""

_FORMATS = {"GeoKeyDirectory": "H", "GeoAsciiParams": "s"}
"""tifffile's letters for the types of tags that are not doubles."""
_PIXEL_ATTRIBUTES = ("GDAL_METADATA", "GDAL_NODATA", "nodata")
"""Attributes that describe pixel values: statistics and the value without data."""
_GRID_ATTRIBUTES = ("ModelPixelScale", "ModelTiepoint", "ModelTransformation")
"""Attributes of tags that state the transform."""

# Keys and values of the GeoTIFF specification (OGC 19-008r4).
_RASTER_TYPE_KEY = 1025
_PIXEL_IS_POINT = 2
_GEOGRAPHIC_KEY = 2048
_PROJECTED_KEY = 3072
_USER_DEFINED = 32767


def attributes_from_tags(tags: Mapping[int, Any], height: int, width: int) -> dict[str, Any]:
    """Return the attributes of a TIFF page.

    Parameters
    ----------
    tags : mapping of int to Any
        Values by tag code. Codes that are not in `GEO_TAGS` are ignored.
    height, width : int
        Size of the page in pixels.

    Returns
    -------
    dict
        Attributes as the module describes them; only the size without geographic tags.
    """
    attributes: dict[str, Any] = {"height": height, "width": width}
    attributes |= {name: _plain(tags[code]) for code, name in GEO_TAGS.items() if code in tags}
    transform = _transform_from_tags(attributes)
    if transform is not None:
        attributes["transform"] = transform
    keys = _geo_keys(attributes)
    code = keys.get(_PROJECTED_KEY, keys.get(_GEOGRAPHIC_KEY))
    if code not in (None, 0, _USER_DEFINED):
        attributes["crs"] = f"EPSG:{code}"
    nodata = _number(attributes.get("GDAL_NODATA"))
    if nodata is not None:
        attributes["nodata"] = nodata
    return attributes


def pixel_coordinates(attributes: Mapping[str, Any]) -> dict[str, npt.NDArray[np.float64]]:
    """Return the coordinates of pixel centres.

    Parameters
    ----------
    attributes : mapping of str to Any
        Includes ``transform``, ``height`` and ``width``.

    Returns
    -------
    dict
        "y": float64, shape (height,), and "x": float64, shape (width,), in units of the reference
        system. Empty without a transform, or if the raster is rotated, so that the pixels of a
        column differ in x.
    """
    if "transform" not in attributes:
        return {}
    a, b, c, d, e, f = attributes["transform"]
    if b or d:
        return {}
    return {
        "y": f + e * (np.arange(attributes["height"]) + 0.5),
        "x": c + a * (np.arange(attributes["width"]) + 0.5),
    }


def cropped_attributes(
    attributes: Mapping[str, Any], top: int, left: int, height: int, width: int
) -> dict[str, Any]:
    """Return the attributes of a window of a raster: the same pixel size, another origin and size.

    Parameters
    ----------
    attributes : mapping of str to Any
        Attributes of the raster.
    top, left : int
        First row and column of the window in the raster, in pixels.
    height, width : int
        Size of the window in pixels.

    Raises
    ------
    InputError
        The raster is georeferenced by ground control points, which cannot be cropped.
    """
    _refuse_ground_control_points(attributes, "cropped")
    result = {**attributes, "height": height, "width": width}
    if "transform" in attributes:
        a, b, c, d, e, f = attributes["transform"]
        moved = (a, b, a * left + b * top + c, d, e, d * left + e * top + f)
        _set_transform(result, moved)
    return result


def attributes_for_grid(attributes: Mapping[str, Any], height: int, width: int) -> dict[str, Any]:
    """Return the attributes of a result that covers the whole raster with pixels of another size.

    Attributes of pixel values (nodata, GDAL's statistics) are left out, since a model's output has
    other values.

    Parameters
    ----------
    attributes : mapping of str to Any
        Attributes of the raster; for a window of it, those that `cropped_attributes` returns.
    height, width : int
        Size of the result in pixels: that of the raster, or a multiple or a divisor of it.

    Raises
    ------
    InputError
        The raster's size is not among the attributes; neither size is a multiple of the other, so
        that the result's pixels do not cover the raster; or the raster is georeferenced by ground
        control points and has another size.
    """
    result = {name: value for name, value in attributes.items() if name not in _PIXEL_ATTRIBUTES}
    if not {"height", "width"} <= set(attributes):
        if {"transform", *_GRID_ATTRIBUTES} & set(attributes):
            raise InputError(
                "the attributes georeference a raster and do not include its size",
                "add its height and width in pixels",
                option="attributes",
            )
        return result
    before, after = (attributes["height"], attributes["width"]), (height, width)
    if before == after:
        return result
    if any(old % new and new % old for old, new in zip(before, after, strict=True)):
        raise InputError(
            f"the result has {height} x {width} pixels and the raster {before[0]} x {before[1]}: "
            "neither is a multiple of the other, so the raster's coordinates do not fit",
            "omit attributes, or pass those of the window, from cropped_attributes",
            option="attributes",
            numbers={
                "height_pixels": height,
                "width_pixels": width,
                "raster_height_pixels": before[0],
                "raster_width_pixels": before[1],
            },
        )
    _refuse_ground_control_points(attributes, "converted to another pixel size")
    result |= {"height": height, "width": width}
    if "transform" in attributes:
        a, b, c, d, e, f = attributes["transform"]
        rows, columns = before[0] / height, before[1] / width
        _set_transform(result, (a * columns, b * rows, c, d * columns, e * rows, f))
    return result


def tags_from_attributes(attributes: Mapping[str, Any]) -> list[tuple[int, str, int, Any, bool]]:
    """Return the geographic tags for tifffile's ``extratags``.

    Returns
    -------
    list of tuple
        Code, type, count, value, and whether to write the tag on the first page only.
    """
    tags: list[tuple[int, str, int, Any, bool]] = []
    for code, name in GEO_TAGS.items():
        if name in attributes:
            value = attributes[name]
            if isinstance(value, str):
                tags.append((code, "s", 0, value, True))
            else:
                tags.append((code, _FORMATS.get(name, "d"), len(value), tuple(value), True))
    return tags


def _transform_from_tags(attributes: Mapping[str, Any]) -> Transform | None:
    """Return the transform that the tags state; None if there is none."""
    matrix = attributes.get("ModelTransformation")
    scale, tie = attributes.get("ModelPixelScale"), attributes.get("ModelTiepoint")
    if matrix is not None and len(matrix) == 16:
        a, b, _, c, d, e, _, f = matrix[:8]
    elif scale is not None and tie is not None and len(scale) >= 2 and len(tie) >= 6:
        a, b, d, e = scale[0], 0.0, 0.0, -scale[1]
        c, f = tie[3] - tie[0] * a, tie[4] - tie[1] * e
    else:
        return None
    shift = _point_shift(attributes)
    return (a, b, c - shift * (a + b), d, e, f - shift * (d + e))


def _set_transform(attributes: dict[str, Any], transform: Transform) -> None:
    """Replace the transform and the tags that state it, in place."""
    for name in _GRID_ATTRIBUTES:
        attributes.pop(name, None)
    a, b, c, d, e, f = attributes["transform"] = transform
    shift = _point_shift(attributes)
    c, f = c + shift * (a + b), f + shift * (d + e)
    if b == 0 and d == 0 and a > 0 and e < 0:
        attributes["ModelPixelScale"] = (a, -e, 0.0)
        attributes["ModelTiepoint"] = (0.0, 0.0, 0.0, c, f, 0.0)
    else:
        rows = ((a, b, 0.0, c), (d, e, 0.0, f), (0.0,) * 4, (0.0, 0.0, 0.0, 1.0))
        attributes["ModelTransformation"] = tuple(value for row in rows for value in row)


def _point_shift(attributes: Mapping[str, Any]) -> float:
    """Return the distance from the corner of the first pixel to the tags' origin, in pixels."""
    return 0.5 if _geo_keys(attributes).get(_RASTER_TYPE_KEY) == _PIXEL_IS_POINT else 0.0


def _geo_keys(attributes: Mapping[str, Any]) -> dict[int, int]:
    """Return the geo keys whose value is in the directory itself."""
    directory: Sequence[int] = attributes.get("GeoKeyDirectory", ())
    entries = zip(directory[4::4], directory[5::4], directory[7::4], strict=False)
    return {key: value for key, place, value in entries if place == 0}


def _refuse_ground_control_points(attributes: Mapping[str, Any], what: str) -> None:
    if "ModelTiepoint" in attributes and "transform" not in attributes:
        points = len(attributes["ModelTiepoint"]) // 6  # six numbers each
        raise InputError(
            f"the raster is georeferenced by {points} ground control points, which cannot be "
            f"{what}",
            "warp the raster to a regular grid first, or omit attributes",
            option="attributes",
            numbers={"ground_control_points": points},
        )


def _plain(value: Any) -> Any:
    """Return a tag's value as a string or a tuple of numbers."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").rstrip("\0")
    if isinstance(value, str):
        return value
    return tuple(np.atleast_1d(value).tolist())


def _number(text: Any) -> float | None:
    """Return GDAL's nodata value; None if it is missing or not a number."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return None
