"""File systems behind paths and URLs, by fsspec, with errors that name the missing package."""

from __future__ import annotations

import difflib
import io
from typing import Any, BinaryIO

import fsspec

from dask_onnx.core.errors import InputError, Suggestion

_PACKAGES = {
    "abfs": ("adlfs", None),
    "abfss": ("adlfs", None),
    "az": ("adlfs", None),
    "gcs": ("gcsfs", "gcs"),
    "gs": ("gcsfs", "gcs"),
    "hf": ("huggingface_hub", "hf"),
    "http": ("aiohttp", "http"),
    "https": ("aiohttp", "http"),
    "s3": ("s3fs", "s3"),
    "s3a": ("s3fs", "s3"),
}
"""Package that opens URLs of a protocol, and the extra of this project that installs it."""


def filesystem_of(path: str, option: str = "path") -> tuple[Any, str]:
    """Return the file system of a path or URL, and the path inside it.

    Parameters
    ----------
    path : str
        Local path, or URL such as ``s3://bucket/rows.parquet``.
    option : str
        Name of the option that gives the path, for errors.

    Raises
    ------
    InputError
        The protocol is unknown, or the package that opens it is not installed.
    """
    try:
        system, inner = fsspec.url_to_fs(path)
    except ImportError as error:
        raise _missing_package(path, option, error) from None
    except ValueError as error:
        protocol = path.partition("://")[0]
        near = difflib.get_close_matches(protocol, fsspec.available_protocols(), n=3, cutoff=0.5)
        raise InputError(
            f"{path} cannot be opened: there is no protocol {protocol!r}",
            f"did you mean {' or '.join(f'{name}://' for name in near)}?"
            if near
            else "use s3://, gs://, hf://, https:// or another protocol that fsspec knows",
            option=option,
            reason=str(error),
            suggestions=[Suggestion(option, path.replace(protocol, name, 1)) for name in near],
        ) from None
    return system, inner


def _missing_package(path: str, option: str, error: ImportError) -> InputError:
    protocol = path.partition("://")[0]
    package, extra = _PACKAGES.get(protocol, (None, None))
    what = f"the package {package}, which is not installed" if package else "another package"
    step = f"pip install 'dask-onnx[{extra}]'" if extra else f"pip install {package}"
    return InputError(
        f"{path} needs {what}",
        f"{step}, on the workers too" if package else str(error),
        option=option,
        reason=str(error),
    )


def is_web_url(path: str) -> bool:
    """Return whether a path is a URL of a web server, which has no folders and is only read."""
    return path.startswith(("http://", "https://"))


def has_ranges(path: str) -> bool:
    """Return whether parts of a file can be read without the bytes before them.

    Some servers of http:// send files only as a whole.

    Parameters
    ----------
    path : str
        Path or URL of a file.
    """
    if not is_web_url(path):
        return True
    system, inner = filesystem_of(path)
    info = system.info(inner)
    return bool(info.get("partial")) and info.get("size") is not None


def open_stream(path: str) -> BinaryIO:
    """Open a file that is read once, from its beginning.

    Raises
    ------
    InputError
        The protocol is unknown, or its package is not installed.
    OSError
        The file does not exist or cannot be read.
    """
    system, inner = filesystem_of(path)
    # With a block size of 0, a server that has no ranges is read as a stream.
    options: dict[str, Any] = {"block_size": 0} if is_web_url(path) else {}
    opened: BinaryIO = system.open(inner, "rb", **options)
    return opened


def open_seekable(path: str) -> BinaryIO:
    """Open a file whose parts are read in any order; from a server without ranges, all of it.

    Raises
    ------
    InputError, OSError
        As for `open_stream`.
    """
    system, inner = filesystem_of(path)
    if not has_ranges(path):
        return io.BytesIO(system.cat_file(inner))
    opened: BinaryIO = system.open(inner, "rb")
    return opened
