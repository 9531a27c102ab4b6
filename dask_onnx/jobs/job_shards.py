"""Shards of a job over files: one of several independent runs takes its part of the input.

No shard knows of the others. All divide the same input in the same way, so that each piece is in
one shard, and the outputs in the order of their names have the rows in the order of the input.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.files import is_url
from dask_onnx.core.filesystems import filesystem_of
from dask_onnx.io.output_formats import SINKS, suffix_of
from dask_onnx.io.output_places import check_folder
from dask_onnx.io.table_sinks import TableSink
from dask_onnx.io.targets import absolute_target, explained_access
from dask_onnx.jobs.option_checks import check_count

_NAME = re.compile(r"shard-\d{4,}-of-(\d{4,})(?=\.|$)")
"""Names that `Shard.name` makes."""
_LOCK = ".lock"
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several independent runs over an input."""

    index: int
    """Position among the shards, from 0."""
    count: int
    """Number of shards."""

    def __str__(self) -> str:
        return f"shard {self.index} of {self.count}"

    @property
    def name(self) -> str:
        """Name of the shard in names of outputs, which sort as the shards do."""
        width = max(4, len(str(self.count)))
        return f"shard-{self.index:0{width}d}-of-{self.count:0{width}d}"

    def part(self, pieces: int, what: str, numbers: Mapping[str, float] | None = None) -> range:
        """Return the positions of the pieces of this shard: consecutive, and about as many in each.

        Parameters
        ----------
        pieces : int
            Number of pieces of the input.
        what : str
            Description of the pieces, in the plural.
        numbers : mapping of str to number, optional
            Quantities in `what`.

        Raises
        ------
        InputError
            There are fewer pieces than shards.
        """
        if pieces < self.count:
            raise InputError(
                f"the input is divided into {self.count:,} shards, and has {pieces:,} {what}",
                f"give at most of={pieces}" if pieces > 1 else "leave shard and of out",
                option="of",
                numbers={"shards": self.count, "pieces": pieces, **(numbers or {})},
                suggestions=[Suggestion("of", pieces)] if pieces > 1 else [],
            )
        return range(pieces * self.index // self.count, pieces * (self.index + 1) // self.count)

    def place(self, target: str) -> str:
        """Return the path or URL of this shard's own output.

        It is inside of a common folder where a format is a folder of files, which can be read as a
        whole (``scores.parquet/shard-0001-of-0004.parquet``), and beside the others where it is one
        file or a zarr store (``scores.shard-0001-of-0004.npy``).

        Parameters
        ----------
        target : str
            Output as the caller gave it.
        """
        target, suffix = target.rstrip("/"), suffix_of(target)
        if _is_folder(target):
            return f"{target}/{self.name}{suffix}"
        ending = target[len(target) - len(suffix) :] if suffix else PurePosixPath(target).suffix
        return f"{target.removesuffix(ending)}.{self.name}{ending}"


def shard_of(shard: int | None, of: int | None) -> Shard | None:
    """Return the shard that two options describe; None if neither is given.

    Raises
    ------
    InputError
        One of them is missing, is no whole number, or `shard` is not below `of`.
    """
    check_count(shard, "shard", least=0)
    check_count(of, "of")
    if shard is None and of is None:
        return None
    if shard is None or of is None:
        missing = "shard" if shard is None else "of"
        raise InputError(
            f"{'of' if shard is None else 'shard'} was given without {missing}",
            "give both: shard=0, of=4 for the first of four runs",
            option=missing,
        )
    if shard >= of:
        raise InputError(
            f"shard is {shard}, and the {of} shards are numbered from 0 to {of - 1}",
            f"give a shard below {of}",
            option="shard",
            numbers={"shard": shard, "of": of},
        )
    return Shard(int(shard), int(of))


def _is_folder(target: str) -> bool:
    """Return whether the shards of an output are in one folder, which has the output's name."""
    suffix = suffix_of(target)
    if suffix:
        return issubclass(SINKS[suffix][0], TableSink)
    # Masks and drawings are pictures in a folder, whose name has no ending.
    return not PurePosixPath(target.rstrip("/")).suffix


@contextlib.contextmanager
def common_folders(targets: Sequence[str], shard: Shard) -> Iterator[None]:
    """Create the folders that all shards write into; removed if the body leaves them empty.

    Parameters
    ----------
    targets : sequence of str
        Outputs as the caller gave them.
    shard : Shard

    Raises
    ------
    InputError
        Shards of another number are there, or something else; the folder cannot be created.
    """
    places = [absolute_target(target) for target in targets]
    for target in places:
        _check_others(target, shard)
    folders = [place for place in places if _is_folder(place) and not is_url(place)]
    for folder in folders:
        check_folder(folder)
    made = [folder for folder in folders if _make_folder(folder)]
    try:
        yield
    except BaseException:
        for folder in made:
            # Another shard may have begun to write there.
            with contextlib.suppress(OSError):
                os.rmdir(folder)  # noqa: PTH106 - removes an empty folder only
        raise


def _make_folder(folder: str) -> bool:
    """Create a folder; return False if it was there, or another shard was quicker."""
    try:
        os.mkdir(folder)  # noqa: PTH102 - the error tells who has created it
    except FileExistsError:
        return False
    return True


def _check_others(target: str, shard: Shard) -> None:
    """Refuse an output at whose place there is anything but shards of the same number."""
    is_folder = _is_folder(target)
    names = _names_in(target) if is_folder else _names_beside(target)
    for name in names:
        if name.endswith(_LOCK):
            continue
        found = _NAME.search(name)
        if found is None and is_folder and not name.startswith("."):
            raise InputError(
                f"the output {target} exists, and has {name}, which is no shard",
                "choose another output, or remove it",
                option="output",
                reason=name,
            )
        if found is not None and int(found[1]) != shard.count:
            raise InputError(
                f"{target} has a shard of {int(found[1])} ({name}), and this run is {shard}: rows "
                "would be there twice",
                f"give of={int(found[1])}, choose another output, or remove the others",
                option="of",
                reason=name,
                numbers={"of": shard.count, "found_of": int(found[1])},
                suggestions=[Suggestion("of", int(found[1]))],
            )


def _names_in(folder: str) -> list[str]:
    """Return the names in a folder at a path or URL; empty if it is not there."""
    system, root = filesystem_of(folder)
    with explained_access(folder):
        if not system.exists(root):
            return []
        if not system.isdir(root):
            raise InputError(
                f"the output {folder} is a file, and shards are written into a folder",
                "choose another output, or remove it",
                option="output",
            )
        with contextlib.suppress(AttributeError):
            system.invalidate_cache(root)
        return sorted(PurePosixPath(name).name for name in system.ls(root, detail=False))


def _names_beside(target: str) -> list[str]:
    """Return the names of the shards of an output beside which they lie, also incomplete ones."""
    folder, _, name = target.rpartition("/")
    stem = name.removesuffix(suffix_of(target) or PurePosixPath(name).suffix)
    parts = [each.removeprefix(".") for each in _names_in(folder or "/")]
    return [each for each in parts if each.startswith(f"{stem}.shard-")]


def has_breaks(shard: Shard) -> InputError:
    """Return the error for a file whose cells have line breaks, so that it cannot be divided."""
    return InputError(
        f"cells have line breaks, so that each file is read from its beginning by one task, and "
        f"there are fewer files than the {shard.count} shards",
        "give at most as many shards as files, or write the table as Parquet",
        option="of",
        numbers={"shards": shard.count},
    )
