"""Files of pictures: a path, a folder, or a pattern, as a sorted list of paths."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from dask_onnx.core.errors import InputError
from dask_onnx.core.files import is_url
from dask_onnx.core.filesystems import filesystem_of
from dask_onnx.io.input_formats import IMAGE_SUFFIXES

_NAMES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class PictureFiles:
    """Pictures that a text names."""

    paths: tuple[str, ...]
    """Absolute paths or URLs, sorted as text."""
    skipped: tuple[str, ...] = ()
    """Other files of a folder, which are left out."""

    def skipped_text(self) -> str:
        """Return which files of a folder are left out, in words."""
        shown = ", ".join(Path(path).name for path in self.skipped[:_NAMES_SHOWN])
        more = ", ..." if len(self.skipped) > _NAMES_SHOWN else ""
        count = f"{len(self.skipped):,} files that do not end as pictures do"
        return f"{count} are left out: {shown}{more}"


@dataclass(frozen=True, slots=True)
class PictureNames:
    """Short names of pictures, which follow from their paths: small, since it travels to tasks."""

    start: int
    """Characters of the folder that all paths have in common."""
    repeated: frozenset[str] = frozenset()
    """Short names without ending that several pictures have."""

    @classmethod
    def of(cls, paths: Sequence[str]) -> PictureNames:
        """Return the short names of all pictures of a job."""
        common = os.path.commonpath([path.rpartition("/")[0] or "/" for path in paths])
        # commonpath joins the slashes of a URL's protocol.
        names = cls(len(common) + ("://" in paths[0]))
        counts = Counter(_without_ending(names.name_of(path)) for path in paths)
        return replace(names, repeated=frozenset(s for s, count in counts.items() if count > 1))

    def name_of(self, path: str) -> str:
        """Return the short name of a picture: without the folder that all have in common."""
        return path[self.start :].lstrip("/")

    def png_of(self, path: str) -> str:
        """Return the name of a picture's PNG file: ``a.jpg`` becomes ``a.png``.

        Where pictures differ in their ending only, ``a.jpg.png``.
        """
        name = self.name_of(path)
        stem = _without_ending(name)
        return f"{name if stem in self.repeated else stem}.png"


def _without_ending(name: str) -> str:
    return name.removesuffix(PurePosixPath(name).suffix)


def is_picture_path(text: str) -> bool:
    """Return whether a text names pictures: a file, a folder with some, or a pattern of them."""
    if Path(text.rstrip("/")).suffix.lower() in IMAGE_SUFFIXES:
        return True
    if is_url(text):
        return False
    path = Path(text).expanduser()
    if path.is_dir():
        with os.scandir(path) as entries:
            return any(_has_suffix(entry.name) for entry in entries if entry.is_file())
    if path.exists():
        return False
    return glob.has_magic(text) and any(map(_has_suffix, _matches(text)))


def find_pictures(text: str) -> PictureFiles:
    """Return the pictures that a text names.

    Parameters
    ----------
    text : str
        A path; a folder, whose own files count that end as pictures do; or a pattern such as
        ``photos/**/*.jpg``, whose ending also matches upper case. A path that exists is taken as it
        is, even if it has brackets. A URL, or a pattern of URLs, is read by fsspec.

    Raises
    ------
    InputError
        Nothing is there.
    """
    if is_url(text):
        return PictureFiles(_urls(text))
    path = Path(text).expanduser()
    if path.is_dir():
        files = sorted(str(each.absolute()) for each in path.iterdir() if each.is_file())
        files = [each for each in files if not Path(each).name.startswith(".")]
        chosen = tuple(each for each in files if _has_suffix(each))
        if not chosen:
            raise InputError(
                f"the folder {path} has no file that ends as pictures do",
                f"name a folder of pictures ({', '.join(sorted(IMAGE_SUFFIXES))}), or a pattern",
                option="path",
                numbers={"files": len(files)},
            )
        return PictureFiles(chosen, tuple(each for each in files if not _has_suffix(each)))
    if path.exists():
        return PictureFiles((str(path.absolute()),))
    found = _matches(text)
    if not found:
        is_pattern = glob.has_magic(text)
        raise InputError(
            f"no file matches {text}" if is_pattern else f"the picture {path} does not exist",
            "check the pattern, and put it in quotes" if is_pattern else "check the path",
            option="path",
        )
    return PictureFiles(tuple(found))


def _matches(text: str) -> Sequence[str]:
    # pathlib cannot glob a pattern that may be absolute or relative.
    pattern = _any_case(str(Path(text).expanduser()))
    names = glob.glob(pattern, recursive=True)  # noqa: PTH207 - absolute patterns
    return sorted(str(Path(name).absolute()) for name in names if Path(name).is_file())


def _any_case(pattern: str) -> str:
    """Return a pattern whose ending matches in upper and lower case."""
    head, dot, suffix = pattern.rpartition(".")
    if not dot or not re.fullmatch("[A-Za-z]+", suffix):
        return pattern
    return head + dot + "".join(f"[{each.lower()}{each.upper()}]" for each in suffix)


def _urls(text: str) -> tuple[str, ...]:
    system, root = filesystem_of(text)
    if not glob.has_magic(root):
        return (text,)
    found = sorted(system.unstrip_protocol(name) for name in system.glob(root))
    if not found:
        raise InputError(f"no file matches {text}", "check the pattern", option="path")
    return tuple(found)


def _has_suffix(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES
