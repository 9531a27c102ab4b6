"""Incomplete outputs of an earlier run that can be resumed, found beside the output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.files import is_url
from dask_onnx.io.block_journal import BlockJournal
from dask_onnx.io.done_blocks import DoneBlocks
from dask_onnx.io.output_places import check_target
from dask_onnx.io.run_manifest import RunManifest
from dask_onnx.io.targets import (
    explained_access,
    foreign_files,
    new_run_name,
    partial_path,
    remove_files,
    remove_folder,
    remove_local,
    staging_of,
    state_path,
    target_exists,
)


@dataclass(frozen=True, slots=True)
class BegunOutputs:
    """Names of the incomplete outputs of a run, and what an earlier run has begun."""

    run: str = field(default_factory=new_run_name)
    """Name of the run, the same for all its outputs."""
    targets: Mapping[str, bool] = field(default_factory=dict)
    """Outputs of an earlier run, and whether each replaces a complete one."""
    is_resumed: bool = False
    """True if this run is the earlier one, resumed."""
    is_finishing: bool = False
    """True if outputs of the earlier run may have their names already."""
    is_completed: bool = False
    """True if the earlier run has completed its outputs, and this one only compares itself."""

    def is_partial(self, target: str) -> bool:
        """Return whether what exists under an output's own name is incomplete.

        An object store cannot rename, so that a new output has its name from the beginning.
        """
        return is_url(target) and self.targets.get(target) is False

    def will_replace(self, target: str) -> bool:
        """Return whether an output replaces one that exists."""
        if self.is_resumed and target in self.targets:
            return self.targets[target]
        return target_exists(target) and not self.is_partial(target)

    def check(self, target: str, *, overwrite: bool) -> None:
        """Raise an error if an output exists that this run may not replace; see `check_target`.

        Parameters
        ----------
        target : str
            Absolute path, or URL.
        overwrite : bool

        Raises
        ------
        InputError
            As for `check_target`.
        """
        if self.is_partial(target) or self.is_completed:
            return
        if self.is_resumed and target in self.targets:
            if self.is_finishing and target_exists(target):
                return
            # The run that is resumed was allowed to replace what was there.
            overwrite = overwrite or self.targets[target]
        check_target(target, overwrite=overwrite)


@dataclass(frozen=True, slots=True)
class BegunRun:
    """An earlier run that did not end: its manifest and the blocks that are complete."""

    target: str
    """Main output of the run: absolute path, or URL."""
    journal: BlockJournal
    manifest: RunManifest
    done: DoneBlocks
    """Blocks and pieces of blocks that are complete, when the record was read."""

    @property
    def blocks(self) -> int:
        """Number of blocks that are complete."""
        return len(self.done.positions)

    @property
    def rows(self) -> int:
        """Rows of these blocks in the main output, and of complete pieces of other blocks."""
        return self.done.rows

    @property
    def has_work(self) -> bool:
        """True if something of it is complete."""
        return bool(self.done) or self.journal.is_finishing

    @property
    def run(self) -> str:
        """Name of the run, in the names of its incomplete files."""
        return str(self.manifest.layout["run"])

    @property
    def targets(self) -> dict[str, bool]:
        """Outputs, and whether each replaces a complete one."""
        return {str(name): bool(value) for name, value in self.manifest.layout["targets"].items()}

    def outputs(self, *, resume: bool) -> BegunOutputs:
        """Return the names for a run that resumes this one, or starts anew in its place."""
        if not resume:
            return BegunOutputs(targets=self.targets)
        return BegunOutputs(self.run, self.targets, True, self.journal.is_finishing)

    @property
    def amount(self) -> str:
        """Description of the blocks and rows that are complete."""
        total = self.manifest.blocks
        blocks = f"{self.blocks:,} of {total:,} blocks" if total else f"{self.blocks:,} blocks"
        rows = self.manifest.rows
        return f"{blocks} ({self.rows:,}{f' of {rows:,}' if rows else ''} rows)"

    def refuse(self) -> InputError:
        """Return the error for a new run under the output of this one, which is kept."""
        return InputError(
            f"an earlier run has begun the output {self.target}, and {self.amount} are complete",
            "go on with resume=True, or start anew with overwrite=True, which removes them",
            option="resume",
            reason=self.journal.folder,
            numbers={"complete_blocks": self.blocks, "complete_rows": self.rows},
            suggestions=[Suggestion("resume", True), Suggestion("overwrite", True)],
        )

    def discard(self) -> None:
        """Remove the incomplete outputs, and the record of the run last."""
        for target, replaces in self.targets.items():
            if not is_url(target):
                # A TIFF file is made of an array beside it.
                for name in (target, f"{target}.npy"):
                    remove_local(partial_path(name, self.run))
            elif replaces:
                remove_folder(staging_of(target, self.run))
            else:
                remove_files(target, foreign_files(target))
        self.journal.remove()


def find_begun(target: str) -> BegunRun | None:
    """Return the run that has begun an output and did not end; None if there is none.

    Parameters
    ----------
    target : str
        Absolute path, or URL.

    Raises
    ------
    InputError
        Its record is damaged, or the URL cannot be accessed.
    """
    journal = BlockJournal(state_path(target))
    with explained_access(target):
        manifest = journal.manifest()
    if manifest is None:
        return None
    journal = replace(journal, run=str(manifest.layout.get("run", "")))
    if not {"run", "targets"} <= set(manifest.layout):
        raise InputError(
            f"{journal.folder} is no record of a run that writes {target}",
            "remove it, or choose another output",
            option="resume",
            reason=journal.folder,
        )
    return BegunRun(target, journal, manifest, DoneBlocks.of(journal.entries()))


def begun_run(target: str) -> str | None:
    """Return the name of the run that has begun an output; None if there is none."""
    try:
        manifest: Any = BlockJournal(state_path(target)).manifest()
    except InputError:
        return None
    return None if manifest is None else manifest.layout.get("run")
