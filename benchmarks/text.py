"""Text: sentences through MiniLM.

    python benchmarks/text.py --assets .cache/assets --output benchmarks/results
    python benchmarks/text.py --assets .cache/assets --only limit ours     # without the slow ones

The texts are English sentences from the documentation of scikit-learn, numpy and pandas, repeated
with another first word up to the requested number. Contestants, in alternating rounds, two
processes of one thread each; all return the mean vector of each sentence:

- limit: two bare processes with the tokenizer and a one-thread ORT session, no Dask; sentences
  sorted by length, at their best rows a run
- ours: `TextModel.predict(ddf["text"])` with default settings
- ours, no buckets: each partition padded to its longest sentence
- hand-made: `map_partitions` with a session cached in an imported module, 32 sentences a run in
  their given order
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
from common import against, alternate, print_against_limit, timed, write_json
from distributed import Client, LocalCluster
from imported_tables import embed, embed_series

import dask_onnx as dx

sys.path.insert(0, str(Path(__file__).parents[1] / "notebooks"))
from prose import sentences

SIZES = (4, 8, 16, 32, 64)
_BY_HAND = 32
_CONTESTANTS = ("limit", "ours", "ours, no buckets", "hand-made")


def corpus(count: int) -> list[str]:
    """Return sentences in random order; repeated ones get another first word."""
    known = sentences(count)
    rng = random.Random(0)
    texts = [
        text if number < len(known) else f"{rng.choice(known).split()[0]} {text}"
        for number, text in ((n, known[n % len(known)]) for n in range(count))
    ]
    rng.shuffle(texts)
    return texts


def checksum(values: Any) -> float:
    """Return the sum of absolute values: small, so that transferring results takes no time."""
    return float(np.abs(np.asarray(values, np.float64)).sum())


def series_checksum(vectors: pd.Series) -> pd.DataFrame:
    return pd.DataFrame({"sum": [checksum(np.stack(vectors.to_numpy()))]})


META = pd.DataFrame({"sum": np.empty(0, np.float64)})


def bare_process(connection: Connection, parts: list[list[str]], model: str, tokens: str) -> None:
    embed(parts[0][:8], model, tokens, 8, by_length=True)
    connection.send("ready")
    while per_run := connection.recv():
        connection.send(
            sum(checksum(embed(part, model, tokens, per_run, by_length=True)) for part in parts)
        )


@contextmanager
def bare_pair(parts: list[list[str]], model: str, tokens: str) -> Iterator[Callable[[int], float]]:
    context = multiprocessing.get_context("spawn")
    started = []
    for number in range(2):
        here, there = context.Pipe()
        process = context.Process(
            target=bare_process, args=(there, parts[number::2], model, tokens)
        )
        process.start()
        started.append((process, here))
    for _, connection in started:
        connection.recv()

    def run(per_run: int) -> float:
        for _, connection in started:
            connection.send(per_run)
        return sum(connection.recv() for _, connection in started)

    try:
        yield run
    finally:
        for process, connection in started:
            connection.send(0)
            process.join()


def measure(
    assets: Path, count: int, partitions: int, rounds: int, only: list[str]
) -> dict[str, Any]:
    model, tokens = str(assets / "minilm.onnx"), str(assets / "minilm_tokenizer.json")
    texts = corpus(count)
    frame = pd.DataFrame({"text": texts})
    lazy = dd.from_pandas(frame, npartitions=partitions)
    parts = [list(lazy.partitions[n].compute()["text"]) for n in range(lazy.npartitions)]
    trial = parts[0][:256]
    per_run = min(
        SIZES,
        key=lambda n: min(
            timed(lambda: embed(trial, model, tokens, n, by_length=True)) for _ in range(2)
        ),
    )
    loaded = dx.load(model)
    encoders = {
        "ours": dx.TextModel(loaded, tokens, max_length=256),
        "ours, no buckets": dx.TextModel(loaded, tokens, max_length=256, length_buckets=()),
    }

    def summed(vectors: Any) -> float:
        return float(vectors.map_partitions(series_checksum, meta=META)["sum"].sum().compute())

    with (
        bare_pair(parts, model, tokens) as limit,
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        dx.configure(client)
        runners: dict[str, Callable[[], float]] = {"limit": lambda: limit(per_run)}
        for name, encoder in encoders.items():
            runners[name] = lambda e=encoder: summed(e.predict(lazy["text"]))
        runners["hand-made"] = lambda: summed(
            lazy["text"].map_partitions(
                embed_series, model, tokens, _BY_HAND, meta=pd.Series([], dtype=object)
            )
        )
        runners = {name: run for name, run in runners.items() if name in only}
        expected = limit(per_run)
        for name, run in runners.items():
            assert abs(run() - expected) < 1e-3 * expected, name
        seconds = alternate(runners, rounds)
    return {
        "sentences": count,
        "partitions": partitions,
        "limit_rows_per_run": per_run,
        "contestants": against(seconds, "limit"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assets", type=Path, default=Path(".cache/assets"))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--sentences", type=int, default=20_000)
    parser.add_argument("--partitions", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=_CONTESTANTS, default=list(_CONTESTANTS))
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as name,
        dask.config.set({"onnx.store.directory": f"{name}/store"}),
    ):
        results = measure(
            arguments.assets,
            arguments.sentences,
            arguments.partitions,
            arguments.rounds,
            arguments.only,
        )
    print_against_limit(
        f"{results['sentences']:,} sentences in {results['partitions']} partitions; the limit at "
        f"{results['limit_rows_per_run']} sentences a run",
        "sentences",
        results["sentences"],
        results["contestants"],
    )
    if arguments.output:
        write_json(arguments.output, "text", results)


if __name__ == "__main__":
    main()
