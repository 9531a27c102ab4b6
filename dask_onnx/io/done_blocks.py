"""Blocks of a run that are complete, with a few bytes for each: there may be millions."""

from __future__ import annotations

import re
from array import array
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from dask_onnx.io.block_journal import DoneBlock

_PIECE = re.compile(r"(\d+)-(\d+)")
"""Name of a piece of a block: the block's position, and that of the piece in it."""


@dataclass(frozen=True, slots=True, eq=False)
class DoneBlocks(Collection[str]):
    """Blocks that are complete, and pieces of streams; a collection of their names."""

    positions: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Positions of blocks, ascending, shape (blocks,)."""
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 1), np.int64))
    """Rows that were written, shape (blocks, outputs)."""
    times: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    """Times of completion in seconds since the epoch, shape (blocks,)."""
    pieces: Mapping[int, Mapping[int, DoneBlock]] = field(default_factory=dict)
    """Pieces of blocks that are not complete: by the block's position and that of the piece."""

    @classmethod
    def of(cls, found: Iterable[DoneBlock]) -> DoneBlocks:
        """Return the blocks of a journal; of a block that was recorded twice, the last record."""
        positions, times, counts = array("q"), array("d"), array("q")
        pieces: defaultdict[int, dict[int, DoneBlock]] = defaultdict(dict)
        outputs = 0
        for each in found:
            if is_block(each.block):
                # All blocks of a run have the same outputs.
                outputs = outputs or len(each.counts)
                if len(each.counts) == outputs:
                    positions.append(int(each.block))
                    times.append(each.at)
                    counts.extend(each.counts)
            elif (name := _PIECE.fullmatch(each.block)) is not None:
                pieces[int(name[1])][int(name[2])] = each
        places = np.array(positions, np.int64)
        # The first occurrence in reversed order is the last.
        unique, reversed_index = np.unique(places[::-1], return_index=True)
        kept = len(places) - 1 - reversed_index
        for place in set(unique.tolist()) & set(pieces):
            del pieces[place]
        rows = np.array(counts, np.int64).reshape(len(places), max(outputs, 1))
        return cls(unique, rows[kept], np.array(times)[kept], dict(pieces))

    def __len__(self) -> int:
        """Return the number of blocks and pieces."""
        return len(self.positions) + sum(map(len, self.pieces.values()))

    def __iter__(self) -> Iterator[str]:
        """Return the names of blocks and pieces."""
        yield from map(str, self.positions.tolist())
        for found in self.pieces.values():
            yield from (each.block for each in found.values())

    def __contains__(self, name: object) -> bool:
        """Return whether a block or a piece is complete, by name."""
        if not isinstance(name, str):
            return False
        if (piece := _PIECE.fullmatch(name)) is not None:
            return int(piece[2]) in self.pieces.get(int(piece[1]), {})
        return is_block(name) and bool(np.isin(int(name), self.positions))

    def only(self, names: Collection[str]) -> DoneBlocks:
        """Return those whose names are among `names`."""
        kept = np.array([str(place) in names for place in self.positions.tolist()], bool)
        pieces = {
            block: {place: each for place, each in found.items() if each.block in names}
            for block, found in self.pieces.items()
        }
        return replace(
            self,
            positions=self.positions[kept],
            counts=self.counts[kept],
            times=self.times[kept],
            pieces={block: found for block, found in pieces.items() if found},
        )

    def totals(self) -> list[int]:
        """Return the rows of all blocks that are complete, one number for each output."""
        return [int(total) for total in self.counts.sum(axis=0)]

    @property
    def rows(self) -> int:
        """Rows of the main output, of pieces too."""
        pieces = (each for found in self.pieces.values() for each in found.values())
        return self.totals()[0] + sum(each.counts[0] for each in pieces if each.counts)

    def mask(self) -> bytes:
        """Return a byte for each block up to the last, which is not zero if it is complete."""
        found = np.zeros(int(self.positions.max(initial=-1)) + 1, np.uint8)
        found[self.positions] = 1
        return found.tobytes()

    def latest(self, count: int, since: float = -np.inf) -> tuple[list[float], list[int]]:
        """Return times, ascending, and rows of the latest blocks and pieces.

        Parameters
        ----------
        count : int
            Number of blocks at most, and of pieces.
        since : float
            Time in seconds since the epoch; earlier ones are left out.
        """
        recent = np.argsort(self.times, kind="stable")[-count:]
        pairs = list(zip(self.times[recent].tolist(), self.counts[recent, 0].tolist(), strict=True))
        pieces = (each for found in self.pieces.values() for each in found.values())
        pairs += [(each.at, each.counts[0]) for each in pieces if each.counts]
        pairs = sorted(pair for pair in pairs if pair[0] >= since)[-count:]
        return [at for at, _ in pairs], [rows for _, rows in pairs]


def is_block(name: str) -> bool:
    """Return whether a name in a journal is that of a block, rather than of a piece of one."""
    return name.isdigit()
