"""A run of a job that can be resumed: what is begun, what is complete, and what stays behind."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from dask_onnx.core.errors import DaskOnnxError, InputError
from dask_onnx.io.begun_outputs import BegunRun, find_begun
from dask_onnx.io.block_journal import BlockJournal
from dask_onnx.io.done_blocks import DoneBlocks
from dask_onnx.io.output_lock import require_free
from dask_onnx.io.output_places import refuse_web_url
from dask_onnx.io.run_manifest import RunManifest
from dask_onnx.io.targets import absolute_target, state_path
from dask_onnx.jobs.completed_runs import record_completed
from dask_onnx.jobs.job_progress import JobProgress
from dask_onnx.jobs.job_result import FilePrediction


class Output(Protocol):
    """Output of a job: the part of a sink that its client calls."""

    @property
    def target(self) -> str:
        """Absolute path, or URL."""

    @property
    def run(self) -> str:
        """Name of the run."""

    @property
    def replaces(self) -> bool:
        """True if it replaces an output that exists."""

    @property
    def is_complete(self) -> bool:
        """True if the incomplete output is gone, since it has its name already."""

    def kept(self, blocks: Collection[str]) -> Collection[str]:
        """Return those of the blocks whose data are there."""

    def finish(self) -> None:
        """Give the complete output its name."""

    def discard(self) -> None:
        """Remove the incomplete output."""


@dataclass(slots=True)
class ResumableRun:
    """State of a run on its client. Created before the cluster; `start` begins or resumes it."""

    outputs: Sequence[Output]
    """Outputs; the first is the one beside which the run is recorded."""
    manifest: RunManifest
    """Description of the run as far as it is known; complete after `start`."""
    begun: BegunRun | None = None
    """The run that is resumed."""
    done: DoneBlocks = field(default_factory=DoneBlocks)
    """Blocks and pieces of blocks that were complete before this run."""
    is_finishing: bool = False
    """True if all blocks were complete before this run."""
    is_finished: bool = False
    """True if all outputs have their names."""
    _mask: bytes = b""
    """A byte for each block that was complete before this run, which is not zero."""

    @property
    def journal(self) -> BlockJournal:
        """Journal in which tasks record their blocks."""
        first = self.outputs[0]
        return BlockJournal(state_path(first.target), first.run)

    @property
    def stored(self) -> RunManifest | None:
        """Manifest of the run that is resumed."""
        return None if self.begun is None else self.begun.manifest

    @property
    def block_rows(self) -> int | None:
        """Rows of a block of the run that is resumed; None for a new run."""
        return None if self.begun is None else self.begun.manifest.block_rows

    def check(self, block_rows: int | None = None) -> None:
        """Raise an error if the run that is resumed differs from this one.

        Parameters
        ----------
        block_rows : int, optional
            Rows of a block, as the caller gave them.

        Raises
        ------
        InputError
            With the differences.
        """
        if self.begun is not None:
            # What the model's outputs look like is known after the first rows have run.
            stored, targets = self.begun.manifest, {each.target for each in self.outputs}
            known = replace(self.manifest, outputs=stored.outputs)
            others = [f"{name} is no output of it" for name in targets - set(self.begun.targets)]
            others += [f"{name} was an output too" for name in set(self.begun.targets) - targets]
            known.require_same(stored, self.outputs[0].target, others)
        if None not in (block_rows, self.block_rows) and block_rows != self.block_rows:
            raise InputError(
                f"block_rows is {block_rows}, and {self.outputs[0].target} was begun with blocks "
                f"of {self.block_rows} rows",
                "leave block_rows out",
                option="block_rows",
                numbers={"block_rows": block_rows or 0, "begun_rows": self.block_rows or 0},
            )

    def take_over(self, found: BegunRun | None) -> None:
        """Resume what is there under the lock of the outputs, or remove it.

        Parameters
        ----------
        found : BegunRun or None
            The run that has begun the first output, as it is now.

        Raises
        ------
        InputError
            Another run has begun or completed the output meanwhile.
        """
        if self.begun is not None:
            if found is None or found.run != self.begun.run:
                raise InputError(
                    f"another run has completed or begun the output {self.outputs[0].target} "
                    "meanwhile",
                    "look at the output, and run it again",
                    option="resume",
                )
            self.begun = found
        elif found is not None:
            found.discard()

    def start(self, manifest: RunManifest, prepare: Callable[[], None]) -> None:
        """Begin the run, or find out what of it is complete.

        Parameters
        ----------
        manifest : RunManifest
            With the outputs' specs and the blocks.
        prepare : callable
            Creates the incomplete outputs.

        Raises
        ------
        InputError
            The run that is resumed differs.
        OutputError
            The outputs cannot be created.
        """
        if self.begun is not None:
            manifest.require_same(self.begun.manifest, self.outputs[0].target)
            self.done = self._kept(self.begun)
            self._mask = self.done.mask()
            self.manifest = self.begun.manifest
        if self.done:
            return
        # The record comes first: without it, nobody would know whose the outputs are.
        layout = {
            **manifest.layout,
            "run": self.outputs[0].run,
            "targets": {each.target: each.replaces for each in self.outputs},
        }
        self.manifest = replace(manifest, layout=layout)
        for output in self.outputs:
            output.discard()
        self.journal.begin(self.manifest)
        prepare()

    def _kept(self, begun: BegunRun) -> DoneBlocks:
        self.is_finishing = begun.journal.is_finishing
        done = begun.done
        for output in self.outputs:
            if not (self.is_finishing and output.is_complete):
                kept = output.kept(done)
                # Most formats keep all, so that no name is looked at.
                done = done if kept is done else done.only(kept)
        return done

    def totals(self, outputs: int) -> list[int]:
        """Return the rows of blocks that were complete before this run, for each of the outputs."""
        return self.done.totals() if len(self.done.positions) else [0] * outputs

    def is_done(self, block: int) -> bool:
        """Return whether a block was complete before this run."""
        return block < len(self._mask) and self._mask[block] != 0

    def pieces_of(self, block: int) -> dict[int, tuple[int, ...]]:
        """Return the pieces of a block that were complete before this run: rows by position."""
        return {place: each.counts for place, each in self.done.pieces.get(block, {}).items()}

    def finish(self) -> None:
        """Give the outputs their names.

        Raises
        ------
        OutputError
            An output cannot be completed.
        """
        self.journal.note_finishing()
        # The output beside which the run is recorded comes last.
        for output in reversed(self.outputs):
            if not (self.is_finishing and output.is_complete):
                output.finish()
        self.is_finished = True

    def complete(self, result: FilePrediction) -> None:
        """Record that the outputs are complete, and remove the record of the run.

        Parameters
        ----------
        result : FilePrediction
        """
        record_completed([output.target for output in self.outputs], self.manifest, result)
        self.journal.remove()

    def drop(self) -> None:
        """Remove everything that the run has written."""
        for output in self.outputs:
            output.discard()
        self.journal.remove()

    @contextlib.contextmanager
    def kept_on_failure(
        self, progress: JobProgress, but_for: type[Exception] | tuple[type[Exception], ...] = ()
    ) -> Iterator[None]:
        """Keep what can be resumed if the body fails or is interrupted; see `stop`.

        Parameters
        ----------
        progress : JobProgress
        but_for : exception or tuple of exceptions
            Errors after which the caller decides.
        """
        try:
            yield
        except but_for:
            raise
        except BaseException as error:
            # Also on Ctrl-C: an incomplete output must not look like a result.
            progress.stopping()
            self.stop(error, progress)
            raise

    def restart(self) -> None:
        """Remove everything that the run has written, and begin anew with the next `start`."""
        self.drop()
        self.begun, self.is_finishing = None, False
        self.done, self._mask = DoneBlocks(), b""

    def stop(self, error: BaseException, progress: JobProgress) -> None:
        """Keep what can be resumed after a failure or an interruption, and say so; else remove it.

        Parameters
        ----------
        error : BaseException
            Gets a note, and the numbers ``complete_blocks`` and ``complete_rows``.
        progress : JobProgress
        """
        if self.is_finished:
            return
        try:
            begun = find_begun(self.outputs[0].target)
        except InputError as damage:
            error.add_note(damage.cause)
            return
        if begun is not None and begun.run != self.outputs[0].run:
            return
        if begun is None or not begun.has_work:
            self.drop()
            return
        note = (
            f"{begun.amount} are complete and kept: go on with resume=True (--resume), or start "
            "anew with overwrite=True (--overwrite)"
        )
        error.add_note(note)
        if isinstance(error, DaskOnnxError):
            error.numbers = {
                **error.numbers,
                "complete_blocks": begun.blocks,
                "complete_rows": begun.rows,
            }
        progress.note(note)


def begun_before(
    target: str, *, resume: bool, overwrite: bool, is_locked: bool = False
) -> BegunRun | None:
    """Return the run that has begun an output; None if there is none.

    Parameters
    ----------
    target : str
        Path or URL of the output.
    resume, overwrite : bool
        What becomes of it.
    is_locked : bool
        True if the caller holds the lock of the output.

    Raises
    ------
    InputError
        There is one, something of it is complete, and neither option is given; both options are
        given; its record is damaged; it still runs; the output is on a web server, or at a URL
        that cannot be accessed.
    """
    if resume and overwrite:
        raise InputError(
            "resume and overwrite were both given",
            "resume goes on with an earlier run, and overwrite starts anew: leave one out",
            option="resume",
        )
    refuse_web_url(absolute_target(target))
    if overwrite:
        with contextlib.suppress(InputError):
            return find_begun(absolute_target(target))
        # Its record is damaged, and is removed where the new one is written.
        return None
    begun = find_begun(absolute_target(target))
    if begun is not None and not is_locked:
        require_free(begun.target)
    if begun is not None and begun.has_work and not resume:
        raise begun.refuse()
    return begun
