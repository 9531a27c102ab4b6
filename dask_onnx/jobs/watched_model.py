"""A model file that is looked at while a job runs: later blocks are run by what it has become."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from dask_onnx.api.model import Model
from dask_onnx.core.errors import ModelError
from dask_onnx.core.files import FileSource, stat_file
from dask_onnx.jobs.job_result import ModelSwap
from dask_onnx.streams.replaced_models import check_replacement

log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
"""Seconds between two looks at the file."""


class ModelWatch:
    """The current model of a path. Blocks that have started are finished by the model before.

    Parameters
    ----------
    model : Model
        Model as it is at the start.
    path : str
        Path or URL of its file.
    load : callable
        Function without arguments that loads the model from the path.
    warn : callable
        Takes a message about a file that cannot be used; the job goes on with the model that it
        has.
    """

    def __init__(
        self, model: Model, path: str, load: Callable[[], Model], warn: Callable[[str], None]
    ) -> None:
        self.model = model
        self.swaps: list[ModelSwap] = []
        """Replacements so far."""
        self._path, self._load, self._warn = path, load, warn
        self._known = self._seen = self._state()
        self._next_look = time.monotonic() + _LOOK_SECONDS

    def at(self, block: int) -> Model:
        """Return the model of the blocks from one on, after a look at the file if it is time.

        Raises
        ------
        InputError
            The new model has other inputs or outputs.
        """
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + _LOOK_SECONDS
            state = self._state()
            # A file that has just changed may still be written.
            if state is not None and state == self._seen and state != self._known:
                self._known = state
                self._replace(block)
            self._seen = state
        return self.model

    def _replace(self, block: int) -> None:
        try:
            new = self._load()
        except ModelError as error:
            self._warn(f"{self._path} has changed, and cannot be loaded: {error.cause}")
            return
        old = self.model
        if new.token == old.token:
            return
        check_replacement(
            (old.inputs, [spec.name for spec in old.outputs]),
            (new.inputs, [spec.name for spec in new.outputs]),
            what=f"the model that {self._path} has become",
            option="watch_model",
        )
        self.model = new
        self.swaps.append(ModelSwap(block, old.token, new.token))

    def _state(self) -> FileSource | None:
        try:
            return stat_file(self._path)
        except Exception as error:  # it may be replaced just now; URLs have errors of their own
            log.debug("cannot look at %s: %s", self._path, error)
            return None
