"""Workers are asked, before work, for what the kernels of a plan need of their host."""

from __future__ import annotations

import importlib
import logging
import pickle
import sys

import dask.array as da
import dask.bag as db
import numpy as np
import onnx
import pytest
from builders import dense_model, make_model, node, value
from distributed import Client, Nanny, Scheduler, SpecCluster
from onnx import TensorProto

import dask_onnx as dx
from dask_onnx.core.specs import SessionSpec
from dask_onnx.facts.host_checks import host_contract, host_needs
from dask_onnx.runtime.host_contracts import HostContract, check_contract
from dask_onnx.runtime.host_needs import ask_host

TEXTS = np.array(["École", "", "straße"], object)


def normalizer(**attributes) -> onnx.ModelProto:
    """Return a model that maps texts as the environment's locale does, unless it names one."""
    return make_model(
        [
            node(
                "StringNormalizer",
                "x",
                "y",
                "fold",
                **{"case_change_action": "UPPER", **attributes},
            )
        ],
        [value("x", ["N"], TensorProto.STRING)],
        [value("y", ["M"], TensorProto.STRING)],
    )


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modules")
    (folder / "only_on_some_hosts.py").write_text("def twice(x):\n    return 2 * x\n")
    return folder


@pytest.fixture(scope="module")
def client(store_directory, module_folder):
    """Client of two workers: one knows the letters of Unicode and a module, one does not."""
    environments = {"whole": {"LC_ALL": "C.UTF-8"}, "bare": {"LC_ALL": "C"}}
    workers = {
        name: {"cls": Nanny, "options": {"nthreads": 1, "env": env}}
        for name, env in environments.items()
    }
    scheduler = {"cls": Scheduler, "options": {"dashboard_address": ":0"}}
    with (
        SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.ERROR) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(2)

        def see(folder):
            sys.path.append(folder)

        client.run(see, str(module_folder), workers=[worker_called(client, "whole")])
        yield client


def worker_called(client, name):
    workers = client.scheduler_info(n_workers=-1)["workers"]
    return next(address for address, info in workers.items() if info["name"] == name)


@pytest.mark.parametrize(
    "collection",
    [
        lambda: TEXTS,
        lambda: da.from_array(TEXTS, chunks=3),
        lambda: db.from_sequence(TEXTS.tolist(), npartitions=1),
    ],
    ids=["numpy", "dask.array", "bag"],
)
def test_a_worker_whose_locale_maps_other_letters_is_named_before_work(
    client, collection, monkeypatch
):
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    model = dx.load(normalizer(locale=""), rows="independent")
    with pytest.raises(dx.PlanError) as caught:
        model.predict(collection())
    error = pickle.loads(pickle.dumps(caught.value))
    assert error.node == "fold"
    assert error.numbers == {"workers": 2, "unable_workers": 1}
    assert worker_called(client, "bare") in error.cause
    assert "locale" in error.next_step


def test_a_module_of_kernels_that_one_worker_lacks_is_named_before_work(
    client, module_folder, monkeypatch
):
    monkeypatch.syspath_prepend(str(module_folder))
    kernels = importlib.import_module("only_on_some_hosts")
    try:
        model = dx.load(dense_model(), replace={"Relu": kernels.twice})
        with pytest.raises(dx.PlanError) as caught:
            model.predict(np.ones((2, 8), np.float32))
    finally:
        del sys.modules["only_on_some_hosts"]
    assert caught.value.option == "custom_ops"
    assert "only_on_some_hosts" in caught.value.reason
    assert worker_called(client, "bare") in caught.value.cause
    assert caught.value.numbers["unable_workers"] == 1


def test_workers_that_agree_are_asked_once_and_run_the_model(client, monkeypatch):
    asked = []
    run = client.run

    def counted(function, *arguments, **options):
        asked.append(function)
        return run(function, *arguments, **options)

    monkeypatch.setattr(client, "run", counted)
    model = dx.load(normalizer(locale="C.UTF-8"))
    for _ in range(3):
        assert model.predict(TEXTS).tolist() == ["ÉCOLE", "", "STRAßE"]
    assert asked.count(ask_host) == 1


def test_a_usual_model_needs_nothing_of_its_hosts(client, monkeypatch):
    model = dx.load(dense_model())
    assert host_needs(model._facts, SessionSpec()) == ()
    # A normaliser whose kernel is this package's own does not depend on the host either.
    own = dx.load(normalizer(locale="xx_XX.UTF-8"))
    assert host_needs(own._facts, SessionSpec()) == ()
    assert own.predict(TEXTS).tolist() == ["ÉCOLE", "", "STRAßE"]


def test_a_library_or_provider_that_a_host_lacks_is_its_answer():
    library = SessionSpec(custom_op_libraries=("/no/such/library.so",))
    provider = SessionSpec(providers=("NoSuchProvider", "CPUExecutionProvider"))
    model = dx.load(dense_model())
    (need,) = host_needs(model._facts, provider)
    (answer,) = ask_host((need,))
    assert "NoSuchProvider" in answer.lacks
    (answer,) = ask_host((type(need)("n", "mine::Op", "", need.proto, spec=library),))
    assert "/no/such/library.so" in answer.lacks


def test_a_worker_that_joins_late_is_held_to_the_same_letters(monkeypatch):
    facts = dx.load(normalizer(locale="C.UTF-8"))._facts
    contract = host_contract(facts, SessionSpec())
    assert contract is not None and contract.shows == tuple(
        a.shows for a in ask_host(contract.needs)
    )
    check_contract(contract, "fold")
    other = HostContract(contract.needs, (("another",),))
    with pytest.raises(dx.StageError) as caught:
        check_contract(other, "fold")
    assert (caught.value.stage, caught.value.node) == ("fold", "fold")
    # The task itself checks it, whoever runs it.
    monkeypatch.setattr("dask_onnx.collections.request_builder.host_contract", lambda *_: other)
    with pytest.raises(dx.StageError) as caught:
        dx.load(normalizer(locale="C.UTF-8"))(TEXTS)
    assert caught.value.node == "fold"
    assert host_contract(dx.load(dense_model())._facts, SessionSpec()) is None
