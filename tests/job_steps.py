"""Jobs of tests that are interrupted and resumed, and digests of what they write."""

from __future__ import annotations

import hashlib

import fsspec
from builders import dense_model

import dask_onnx as dx
from dask_onnx.jobs.job_progress import JobProgress


class Interrupted(KeyboardInterrupt):
    """The interruption of a test."""


def interrupting(after):
    """Return a progress that interrupts the job once so many units are complete."""

    class Progress(JobProgress):
        def __init__(self):
            self.notes = []

        def advanced(self, done, total, unit):
            if done >= after:
                raise Interrupted

        def note(self, message):
            self.notes.append(message)

    return Progress()


def digests(target):
    """Return the digest of each file of an output by name."""
    system, root = fsspec.url_to_fs(str(target))
    return {
        path.removeprefix(root): hashlib.sha256(system.cat_file(path)).hexdigest()
        for path in system.find(root)
    }


def predict(source, target, client, **options):
    """Run a job with blocks of five rows."""
    options = {"block_rows": 5, "batch_size": 5} | options
    model = options.pop("model", None) or dense_model()
    return dx.predict_files(model, source, target, scheduler=client, retries=0, **options)
