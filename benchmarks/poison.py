"""Rows that end their process, and batches that do not fit: what a caller sees of them.

    python benchmarks/poison.py --output benchmarks/results

One row among 10,000 (or three, or the last) aborts the process that runs it; two workers. Then
batches of which one needs more memory than a worker may have, by Dask's limit or, as root, by that
of a control group, at which the kernel ends the process. A new cluster and an empty store for each
line; each request runs twice.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
from common import print_table, write_json
from distributed import Client, LocalCluster, WorkerPlugin

import dask_onnx as dx

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import poison_models

cloudpickle.register_pickle_by_value(poison_models)
ROWS, BAD, PARTS = 10_000, 4321, 16
FEW = 256
"""Rows where each needs much memory."""
COLUMNS = {"x": list("abcd")}
GROUP = Path("/sys/fs/cgroup/memory/dask_onnx_poison")
GROUP_BYTES = 2 * 10**9


@dataclass(frozen=True)
class Case:
    """A request of a cluster of two workers."""

    name: str
    request: Callable[[Path], Any]
    """Runs it, with a scratch folder."""
    check: Callable[[Any], str]
    """Compares the result with numpy's, and says in words what it is."""
    limit: str = "2GB"
    """Memory of a worker, by Dask; "group": of both by the kernel."""


def rows_with(*bad: int, count: int = ROWS) -> np.ndarray:
    """Return rows, float32 (count, 4), of which some are marked."""
    x = np.random.default_rng(0).standard_normal((count, 4), dtype=np.float32)
    x[list(bad), 2] = poison_models.MARK
    return x


def frame(x: np.ndarray) -> pd.DataFrame:
    """Return rows as a table."""
    return pd.DataFrame(x, columns=list("abcd"))


def model_of(function: Any) -> dx.Model:
    """Return the model of x -> -(x + 1)."""
    return dx.load(poison_models.marked_model(), replace={"poison::Step": function})


def checked_rows(x: np.ndarray, sign: int = -1) -> Callable[[Any], str]:
    """Return the check of results of rows: right, null or set aside where marked."""
    expected, bad = sign * (x + 1), (x == poison_models.MARK).any(axis=1)

    def check(found: Any) -> str:
        if isinstance(found, tuple):
            good, dead = found
            assert np.array_equal(np.asarray(good, np.float32), expected[~bad])
            assert len(dead) == bad.sum()
            return f"{len(good):,} right, {len(dead)} set aside"
        values = np.asarray(found, dtype=np.float32)
        assert np.array_equal(values[~bad], expected[~bad])
        nulls = np.isnan(values).any(axis=1)
        assert not nulls[~bad].any()
        return f"{len(values) - nulls.sum():,} right, {nulls.sum()} null"

    return check


def in_a_table(x: np.ndarray, function: Any, *, checked: bool = False, **options: Any) -> Any:
    """Return a request of a lazy table."""

    def request(_: Path) -> Any:
        model, lazy = model_of(function), dd.from_pandas(frame(x), npartitions=PARTS)
        if checked:
            return dask.compute(*model.predict_checked(lazy, columns=COLUMNS, **options))
        return model.predict(lazy, columns=COLUMNS, **options).compute()

    return request


def in_an_array(
    x: np.ndarray, function: Any, plan: str = "whole", rows: int = ROWS // PARTS
) -> Any:
    """Return a request of a dask.array."""

    def request(_: Path) -> Any:
        model = model_of(function)
        return model.predict(da.from_array(x, chunks=(rows, 4)), plan=model.plan(plan)).compute()

    return request


def in_files(x: np.ndarray, function: Any, *, quarantine: bool = False, **options: Any) -> Any:
    """Return a job from Parquet to Parquet; with a quarantine, good and bad rows."""

    def request(folder: Path) -> Any:
        source, target, aside = (
            folder / name for name in ("x.parquet", "y.parquet", "bad.parquet")
        )
        frame(x).to_parquet(source)
        dx.predict_files(
            model_of(function),
            source,
            target,
            columns=COLUMNS,
            overwrite=True,
            scheduler=Client.current(),
            quarantine=aside if quarantine else None,
            **options,
        )
        good = pd.read_parquet(target)
        good = good[[name for name in good if name not in "abcd"]]
        return (good, pd.read_parquet(aside)) if quarantine else good

    return request


def bag_checked(_: Path) -> Any:
    items = db.from_sequence(list(rows_with(BAD)), npartitions=PARTS)
    return dask.compute(*model_of(poison_models.abort_on_mark).predict_checked(items))


def words(_: Path) -> Any:
    """Return embeddings of 2,000 texts, of which one has a word that aborts."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate(["[UNK]", "one", "two", "poison"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    vectors = np.ones((4, 4), np.float32)
    vectors[3] = poison_models.MARK
    model = dx.load(
        poison_models.word_model(vectors), replace={"poison::Step": poison_models.abort_on_mark}
    )
    texts = ["one two"] * 2000
    texts[777] = "one poison"
    lazy = dd.from_pandas(pd.Series(texts, name="text"), npartitions=PARTS)
    return dx.TextModel(model, tokenizer).predict(lazy, on_error="null").compute()


def pictures(_: Path) -> Any:
    """Return means of 200 pictures, of which one is white and aborts."""
    model = dx.load(
        poison_models.picture_model(), replace={"poison::Step": poison_models.abort_on_white}
    )
    every = np.random.default_rng(0).integers(0, 255, (200, 8, 8, 3), dtype=np.uint8)
    every[77] = 255
    items = db.from_sequence(list(every), npartitions=4)
    return dask.compute(*dx.ImageModel(model, preset="raw").predict_checked(items))


def count_missing(found: Any) -> str:
    """Return how many items are complete, and how many are missing or set aside."""
    if isinstance(found, tuple):
        return f"{len(found[0]):,} right, {len(found[1])} set aside"
    rows = found if isinstance(found, pd.Series) else found.iloc[:, 0]
    return f"{rows.notna().sum():,} right, {rows.isna().sum()} null"


def poison_cases() -> list[Case]:
    """Return the requests with rows that abort."""
    one, three, last = rows_with(BAD), rows_with(100, BAD, 9000), rows_with(ROWS - 1)
    abort, among = poison_models.abort_on_mark, poison_models.abort_among_others

    def numpy(x: Any) -> Any:
        return lambda _: model_of(abort).predict(x)

    return [
        Case("numpy, raise", numpy(one), checked_rows(one)),
        Case("numpy, raise, three rows", numpy(three), checked_rows(three)),
        Case("dask.array, raise", in_an_array(one, abort), checked_rows(one)),
        Case(
            "dask.array, raise, two stages", in_an_array(one, abort, "per_node"), checked_rows(one)
        ),
        Case("table, raise", in_a_table(one, abort), checked_rows(one)),
        Case("table, null", in_a_table(one, abort, on_error="null"), checked_rows(one)),
        Case("table, null, last row", in_a_table(last, abort, on_error="null"), checked_rows(last)),
        Case(
            "table, null, only in runs of several rows",
            in_a_table(one, among, on_error="null"),
            checked_rows(rows_with(BAD)),
        ),
        Case("table, checked", in_a_table(one, abort, checked=True), checked_rows(one)),
        Case(
            "table, checked, three rows",
            in_a_table(three, abort, checked=True),
            checked_rows(three),
        ),
        Case("bag, checked", bag_checked, checked_rows(one)),
        Case("files, raise", in_files(one, abort), checked_rows(one)),
        Case("files, null", in_files(one, abort, on_error="null"), checked_rows(one)),
        Case("files, quarantine", in_files(one, abort, quarantine=True), checked_rows(one)),
        Case("texts, null", words, count_missing),
        Case("pictures, checked", pictures, count_missing),
    ]


def memory_cases() -> list[Case]:
    """Return the requests whose runs need more memory than a worker has."""
    x = rows_with(count=FEW)
    hungry, check = poison_models.hungry, checked_rows(x, 1)

    def model() -> dx.Model:
        return dx.load(poison_models.step_model(), replace={"poison::Step": hungry})

    def in_numpy(_: Path) -> Any:
        return model().predict(x, batch_size=64)

    def in_array(_: Path) -> Any:
        return model().predict(da.from_array(x, chunks=(64, 4)), batch_size=64).compute()

    def in_table(_: Path) -> Any:
        lazy = dd.from_pandas(frame(x), npartitions=4)
        return model().predict(lazy, columns=COLUMNS, batch_size=64).compute()

    def in_stages(_: Path) -> Any:
        return model_of(hungry).predict(x, batch_size=64)

    return [
        Case("numpy, batches of 64", in_numpy, check, "700MB"),
        Case("numpy, batches of 64, two stages", in_stages, checked_rows(x), "700MB"),
        Case("dask.array, batches of 64", in_array, check, "700MB"),
        Case("table, batches of 64", in_table, check, "700MB"),
        Case("table, batches of 64, killed by the kernel", in_table, check, "group"),
    ]


class JoinGroup(WorkerPlugin):
    """Moves each worker, also a restarted one, into the control group."""

    name = "join-group"

    def setup(self, worker: Any) -> None:
        (GROUP / "cgroup.procs").write_text(str(os.getpid()))


@contextlib.contextmanager
def control_group() -> Iterator[None]:
    """Make a control group of `GROUP_BYTES`."""
    GROUP.mkdir(exist_ok=True)
    (GROUP / "memory.limit_in_bytes").write_text(str(GROUP_BYTES))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # a process is still ending
            GROUP.rmdir()


def end_of(case: Case, folder: Path) -> str:
    """Return what a request ends in, in words."""
    try:
        return case.check(case.request(folder))
    except dx.DaskOnnxError as error:
        names = ("block", "row", "micro_batch_rows", "signal", "workers")
        found = [f"{name} {error.numbers[name]:g}" for name in names if name in error.numbers]
        return f"{type(error).__name__}: {', '.join(found) or error.cause[:300]}"


def measure(case: Case) -> list[Any]:
    """Return the line of a request: its end, workers lost, seconds; and both once more."""
    is_grouped = case.limit == "group"
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        os.environ["DASK_ONNX__STORE__DIRECTORY"] = folder
        settings = {
            "onnx.store.directory": folder,
            "onnx.plan.memory-check": "warn",
            "distributed.deploy.lost-worker-timeout": "600s",
        }
        stack.enter_context(dask.config.set(settings))
        if is_grouped:
            stack.enter_context(control_group())
        cluster = stack.enter_context(
            LocalCluster(
                n_workers=2,
                threads_per_worker=1,
                memory_limit=0 if is_grouped else case.limit,
                dashboard_address=":0",
                silence_logs=logging.CRITICAL,
            )
        )
        client = stack.enter_context(Client(cluster))
        dx.configure(client)
        if is_grouped:
            client.register_plugin(JoinGroup())
        model_of(poison_models.abort_on_mark).predict(rows_with(count=2))

        def lost() -> int:
            return client.run_on_scheduler(
                lambda dask_scheduler: dask_scheduler._workers_removed_total
            )

        line: list[Any] = [case.name]
        for turn in range(2):
            before, began = lost(), time.perf_counter()
            end = end_of(case, Path(folder))
            seconds = time.perf_counter() - began
            line += [end] if turn == 0 else []
            line += [lost() - before, round(seconds, 1)]
        print(line, flush=True)
        return line


def main() -> None:
    """Measure, print and write all lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names of requests")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    cases = [*poison_cases(), *memory_cases()]
    if os.geteuid() or not GROUP.parent.is_dir():
        cases = [case for case in cases if case.limit != "group"]
    lines = [measure(case) for case in cases if any(part in case.name for part in options.only)]
    head = ["request", "what the caller sees", "workers lost", "seconds", "lost again", "seconds"]
    print_table(
        "Rows that end their process, runs that do not fit; then the same again",
        head,
        [[str(cell) for cell in line] for line in lines],
    )
    if options.output is not None:
        write_json(options.output, "poison", {str(line[0]): line[1:] for line in lines})


if __name__ == "__main__":
    main()
