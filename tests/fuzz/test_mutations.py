"""Damaged and hostile models end in a result or an error of dask_onnx, and never in another way.

The mutations are those of ``benchmarks/mutations.py``. Each runs in a process of its own; here a
script runs them, since a process with threads, such as that of the tests, must not be forked.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dask_onnx.core.errors import ModelError, UnexpectedModelError
from dask_onnx.modelio.onnx_model import load_onnx
from dask_onnx.modelio.structure import check_structure

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CORPUS = Path(__file__).parent / "corpus"
MOST_SECONDS = 60
"""Seconds for all steps of one model, on a machine that does much else."""
MOST_BYTES = 2 * 2**30
MOST_UNFORESEEN = 0.04
"""Share of mutations that the boundary behind the checks may have to catch."""


@pytest.fixture(scope="module")
def mutation():
    """Return the generator of mutations."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from mutated_models import mutation
    finally:
        sys.path.remove(str(BENCHMARKS))
    return mutation


def run_script(*arguments):
    command = [sys.executable, str(BENCHMARKS / "mutations.py"), "--json"]
    command += [*map(str, arguments), "--seconds", str(MOST_SECONDS)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check_ends(ends):
    assert [end for end in ends if end["kind"] == "raw"] == []
    # Crashes and hangs of ONNX Runtime: a model that is not trusted meets them elsewhere.
    crashed = [end for end in ends if end["kind"] in ("crash", "hang")]
    assert [end for end in crashed if end["untrusted"] != "ModelError"] == []
    assert max(end["seconds"] for end in ends) < MOST_SECONDS or crashed
    assert max(end["peak_bytes"] for end in ends) < MOST_BYTES
    unforeseen = sum(end["unexpected"] > 0 for end in ends)
    assert unforeseen <= max(3, MOST_UNFORESEEN * len(ends))


@pytest.fixture(scope="module")
def ends():
    """Return the ends of the corpus and of some mutations, by name; one process imports for all."""
    return run_script("--models", CORPUS, "--count", 60, "--first", 100_000)


def test_mutations_end_in_results_and_errors(ends):
    mutations = [end for end in ends if end["seed"] >= 0]
    check_ends(mutations)
    assert len(mutations) == 60
    assert {end["kind"] for end in mutations} >= {"result", "error"}


def test_models_that_once_failed_end_in_results_and_errors(ends):
    corpus = [end for end in ends if end["seed"] < 0]
    check_ends(corpus)
    assert {end["name"] for end in corpus} == {path.stem for path in CORPUS.glob("*.onnx")}
    assert len(corpus) >= 20


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_ten_thousand_mutations_end_in_results_and_errors():
    check_ends(run_script("--count", 10_000))


@given(seed=st.integers(0, 2**32))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_check_of_structure_raises_nothing_but_model_errors(mutation, seed):
    try:
        model = onnx.ModelProto.FromString(mutation(seed)[1])
    except DecodeError:
        return
    error = refusal(model)
    assert not isinstance(error, UnexpectedModelError)
    assert error is None or (error.cause and error.next_step)


def refusal(model):
    try:
        check_structure(model)
    except ModelError as error:
        return error
    return None


@given(data=st.binary(max_size=300))
@settings(max_examples=300)
def test_random_bytes_are_no_model(data):
    with pytest.raises(ModelError):
        load_onnx(b"\x08\x08" + data)
