# %% [markdown]
# # Sentences that mean the same
#
# Takes three thousand English sentences (scikit-learn's descriptions of its data sets, and
# docstrings of scikit-learn, numpy and pandas), turns each into a vector with MiniLM on a local
# cluster of two processes, writes them to Parquet, and prints the nearest neighbours of two
# sentences. `make demo` runs this file.

# %%
from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

import dask.dataframe as dd
import numpy as np
import pandas as pd
from distributed import Client, LocalCluster
from prose import sentences

import dask_onnx as dx

COUNT = 3000
QUESTIONS = (
    "The measurements were taken from patients in a hospital.",
    "Each picture shows the face of a person.",
)

# %% [markdown]
# ## Vectors and nearest neighbours


# %%
def main(assets: Path, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    encoder = dx.TextModel(
        dx.load(assets / "minilm.onnx"), assets / "minilm_tokenizer.json", normalize=True
    )
    table = dd.from_pandas(pd.DataFrame({"sentence": sentences(COUNT)}), npartitions=12)
    written = output / "sentences.parquet"
    shutil.rmtree(written, ignore_errors=True)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        dx.configure(client)
        began = time.perf_counter()
        encoder.predict(table, column="sentence", name="vector").to_parquet(written)
        seconds = time.perf_counter() - began
        asked = encoder.predict(QUESTIONS)
    # Without this backend pandas cannot read its own metadata of a column of lists.
    found = pd.read_parquet(written, dtype_backend="pyarrow")
    print(f"{len(found):,} sentences in {seconds:.1f} s: {written}")
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
