"""Work that all peers get: a model, files, and the rows of a run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

Result = dict[str, npt.NDArray[Any]]
"""Values in memory, with the name of the file of each row where files are rows."""


@dataclass(frozen=True)
class Work:
    """One job on one set of files."""

    job: str
    """Name of the function of a peer's module: images, table, sentences, large or picture."""
    model: str
    """Path of the ONNX model."""
    folder: str
    """Folder with the files and nothing else."""
    files: tuple[str, ...]
    output: str
    """Folder for the Parquet files of tables and sentences, empty before each run."""
    batch: int
    """Rows of one run of ONNX Runtime, where the peer does not choose them."""
    chunk: int
    """Files of one task of the job with pictures."""
    tokens: str = ""
    """Path of the tokenizer."""
    estimator: str = ""
    """Path of the pipeline of scikit-learn that the model was exported from."""

    def chunks(self) -> list[tuple[str, ...]]:
        """Return the files in groups of `chunk`."""
        return [self.files[n : n + self.chunk] for n in range(0, len(self.files), self.chunk)]

    def part(self, number: int, count: int) -> Work:
        """Return the work on one of `count` equal shares of the chunks of files."""
        chosen = self.chunks()[number::count]
        return replace(self, files=tuple(file for chunk in chosen for file in chunk))

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Work:
        known = json.loads(path.read_text())
        return cls(**(known | {"files": tuple(known["files"])}))
