"""Checks for packages that only some file formats need."""

from __future__ import annotations

import importlib.util

from dask_onnx.core.errors import InputError

_EXTRAS = {
    "PIL": ("pillow", "images"),
    "av": ("av", "video"),
    "cv2": ("opencv-python-headless", "ocr"),
    "pandas": ("pandas", "dataframe"),
    "pyarrow": ("pyarrow", "parquet"),
    "tifffile": ("tifffile", "tiff"),
    "xarray": ("xarray", "xarray"),
    "zarr": ("zarr", "zarr"),
}
"""Name of the package and the extra of this project that installs it, by module."""


def require_package(module: str, purpose: str, instead: str = "") -> None:
    """Raise an error unless the package with a module is installed.

    Parameters
    ----------
    module : str
        Name of the module to import.
    purpose : str
        File, format or function that needs it: the subject of the error message.
    instead : str, optional
        Another next step than the installation.

    Raises
    ------
    InputError
        The package is not installed.
    """
    if importlib.util.find_spec(module) is None:
        package, extra = _EXTRAS[module]
        raise InputError(
            f"{purpose} needs the package {package}, which is not installed",
            f"pip install 'dask-onnx[{extra}]', on the workers too{instead and f'; or {instead}'}",
            reason=f"no module named {module!r}",
        )
