from __future__ import annotations

import os
import signal

import dask.dataframe as dd
import decoder_models
import pandas as pd
import pytest
from distributed import as_completed

import dask_onnx as dx

pytestmark = pytest.mark.cluster

TEXTS = [decoder_models.text_of(prompt) for prompt in decoder_models.prompts(48)]
DRAWN = {"temperature": 1.0, "top_p": 0.9, "seed": 2}


@pytest.fixture(scope="module")
def generator(store_directory):
    return dx.Generator(dx.load(decoder_models.gpt2_like()), decoder_models.tokenizer(), eos="w7")


@pytest.fixture(scope="module")
def tables(generator):
    """Tables that this process writes, by whether tokens are drawn."""
    table = pd.DataFrame({"prompt": TEXTS})
    return {
        drawn: generator.generate(table.prompt, max_new_tokens=20, **(DRAWN if drawn else {}))
        for drawn in (False, True)
    }


@pytest.mark.parametrize("drawn", [False, True], ids=["greedy", "drawn"])
def test_a_cluster_writes_what_one_process_writes(drawn, client, generator, tables):
    table = dd.from_pandas(pd.DataFrame({"prompt": TEXTS}), npartitions=5)
    options = {"max_new_tokens": 20, **(DRAWN if drawn else {})}
    found = generator.generate(table.prompt, **options).compute()
    pd.testing.assert_frame_equal(found, tables[drawn])
    listed = generator.generate(TEXTS, **options)
    assert [each.text for each in listed] == tables[drawn].text.tolist()


def test_a_bad_prompt_on_a_cluster_names_partition_and_row(client, generator):
    table = dd.from_pandas(pd.DataFrame({"prompt": [*TEXTS[:5], ""]}), npartitions=2)
    with pytest.raises(dx.InputError) as caught:
        generator.generate(table.prompt, max_new_tokens=2).compute()
    assert (caught.value.numbers["row"], caught.value.numbers["rows"]) == (2, 3)
    assert "partition 1" in caught.value.cause


@pytest.mark.slow
def test_a_killed_worker_changes_no_text(own_client, generator, tables):
    table = dd.from_pandas(pd.DataFrame({"prompt": TEXTS}), npartitions=12)
    lazy = generator.generate(table.prompt, max_new_tokens=20, **DRAWN)
    futures = own_client.compute(lazy.to_delayed())
    next(iter(as_completed(futures)))
    lost = next(iter(own_client.run(os.getpid).values()))
    os.kill(lost, signal.SIGKILL)
    found = pd.concat(own_client.gather(futures))
    pd.testing.assert_frame_equal(found, tables[True])
