# %% [markdown]
# # Sentences that mean the same
#
# Takes the English prose of scikit-learn's data set descriptions apart into sentences, turns each
# into a vector with MiniLM on a local cluster of two processes, writes them to Parquet, and prints
# the nearest neighbours of two sentences. `make demo` runs this file as it is.

# %%
from __future__ import annotations

import argparse
import re
import time
from importlib.resources import files
from pathlib import Path

import dask.dataframe as dd
import numpy as np
import pandas as pd
from distributed import Client, LocalCluster

import dask_onnx as dx

QUESTIONS = (
    "The measurements were taken from patients in a hospital.",
    "Each picture shows the face of a person.",
)

# %% [markdown]
# ## Sentences


# %%
def sentences() -> list[str]:
    """The sentences of the descriptions, markup left out."""
    found = []
    for path in sorted(files("sklearn.datasets.descr").iterdir(), key=lambda p: p.name):
        if not path.name.endswith(".rst"):
            continue
        for paragraph in re.split(r"\n\s*\n", path.read_text(encoding="utf-8")):
            text = " ".join(re.sub(r"[`*|=>_]+", "", paragraph).split())
            found += [part for part in re.split(r"(?<=[.!?])\s+", text) if len(part.split()) > 4]
    return found


# %% [markdown]
# ## Vectors, and what is near


# %%
def main(assets: Path, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    encoder = dx.TextModel(
        dx.load(assets / "minilm.onnx"), assets / "minilm_tokenizer.json", normalize=True
    )
    table = dd.from_pandas(pd.DataFrame({"sentence": sentences()}), npartitions=8)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        dx.configure(client)
        began = time.perf_counter()
        vectors = encoder.predict(table["sentence"]).rename("vector")
        found = table.assign(vector=vectors).compute()
        seconds = time.perf_counter() - began
        asked = encoder.predict(QUESTIONS)
    found.to_parquet(output / "sentences.parquet")
    print(f"{len(found):,} sentences in {seconds:.1f} s: {output / 'sentences.parquet'}")
    near = np.stack(found["vector"].to_numpy()) @ asked.T
    for question, likeness in zip(QUESTIONS, near.T, strict=True):
        print(f"\n{question}")
        for place in likeness.argsort()[::-1][:3]:
            print(f"  {likeness[place]:.2f}  {found['sentence'].iloc[place][:100]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Sentences that mean the same.")
    parser.add_argument("--assets", type=Path, default=Path(".cache/assets"))
    parser.add_argument("--output", type=Path, default=Path("demo-output"))
    arguments = parser.parse_args()
    main(arguments.assets, arguments.output)
