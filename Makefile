# `make demo` and `make test` need Python 3.11 or newer, pip, git and make; the rest they fetch.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ASSETS := .cache/assets
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
PEERS := .venv-peers
PEERS_STAMP := $(PEERS)/.installed

.PHONY: test test-slow test-minimum test-minimum-onnx test-upstream coverage lint docs docs-links demo conformance conversions registry bench bench-network bench-peers assets clean

# Tests that use clusters run one after another in one process, the others beside them: tests/conftest.py.
PARALLEL := -n 2 --dist loadscope

test: $(STAMP) assets
	DASK_ONNX_ASSETS=$(ASSETS) $(BIN)/python -m pytest -m "not slow" $(PARALLEL) $(PYTEST_ARGS)

# What takes minutes each: thousands of random graphs, all of ONNX's cases.
test-slow: $(STAMP) assets
	DASK_ONNX_ASSETS=$(ASSETS) $(BIN)/python -m pytest -m slow --timeout 3600 --hypothesis-profile explore $(PYTEST_ARGS)

# Which lines the quick tests reach; the page is htmlcov/index.html.
coverage: $(STAMP) assets
	DASK_ONNX_ASSETS=$(ASSETS) $(BIN)/python -m pytest -m "not slow" --cov --cov-report=html $(PYTEST_ARGS)

# The oldest versions that pyproject.toml allows of the packages at the heart.
test-minimum: assets
	$(PYTHON) -m venv .venv-minimum
	.venv-minimum/bin/python -m pip install --quiet --editable '.[test]' -c tests/minimum.txt
	DASK_ONNX_ASSETS=$(ASSETS) .venv-minimum/bin/python -m pytest -m "not slow and not real" \
		--ignore tests/conformance $(PYTEST_ARGS)

# With them the oldest onnx and onnxruntime, without the extras of the tests, which need newer ones.
test-minimum-onnx: assets
	$(PYTHON) -m venv .venv-minimum-onnx
	.venv-minimum-onnx/bin/python -m pip install --quiet \
		--editable '.[dataframe,images,parquet,text,xarray,zarr]' \
		cryptography hypothesis polars pytest pytest-timeout scikit-learn \
		-c tests/minimum.txt -c tests/minimum-onnx.txt
	DASK_ONNX_ASSETS=$(ASSETS) .venv-minimum-onnx/bin/python -m pytest -m "not slow and not real" \
		tests/api $(PYTEST_ARGS)

# Dask as it is in its repositories.
test-upstream: assets
	$(PYTHON) -m venv .venv-upstream
	.venv-upstream/bin/python -m pip install --quiet --editable '.[test]'
	.venv-upstream/bin/python -m pip install --quiet --upgrade \
		git+https://github.com/dask/dask git+https://github.com/dask/distributed
	DASK_ONNX_ASSETS=$(ASSETS) .venv-upstream/bin/python -m pytest -m "not slow" $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# The site, in docs/_build/html. Needs no network once the packages are there; warnings are errors.
docs: $(DOCS_STAMP)
	$(BIN)/python -m sphinx -n -W --keep-going -b html docs docs/_build/html

# Report links to other sites that do not answer. Without a network it says so, and succeeds.
docs-links: $(DOCS_STAMP)
	$(BIN)/python -m sphinx -Q -b linkcheck docs docs/_build/links || true
	$(BIN)/python docs/link_report.py docs/_build/links/output.json

demo: $(STAMP) assets
	$(BIN)/python notebooks/text_detection.py --assets $(ASSETS) --output demo-output
	$(BIN)/python notebooks/nearest_sentences.py --assets $(ASSETS) --output demo-output

conformance: $(STAMP)
	$(BIN)/python tests/conformance/suite.py --output tests/conformance
	$(BIN)/python tests/conformance/kernels.py

# The page CONVERSIONS.md, from the table in the code.
conversions: $(STAMP)
	$(BIN)/python tests/conversion_page.py

# Every operator that ONNX Runtime registers, loaded and run.
registry: $(STAMP)
	PYTHONPATH=tests $(BIN)/python tests/conformance/registry.py --output tests/conformance

bench: $(STAMP) assets
	$(BIN)/python benchmarks/throughput.py --assets $(ASSETS) --output benchmarks/results
	$(BIN)/python benchmarks/overhead.py --output benchmarks/results
	$(BIN)/python benchmarks/weights.py --assets $(ASSETS) --output benchmarks/results
	$(BIN)/python benchmarks/threads.py --assets $(ASSETS) --output benchmarks/results
	$(BIN)/python benchmarks/batch.py --assets $(ASSETS) --output benchmarks/results
	$(BIN)/python benchmarks/tabular.py --output benchmarks/results
	$(BIN)/python benchmarks/text.py --assets $(ASSETS) --output benchmarks/results
	$(BIN)/python benchmarks/forest.py --output benchmarks/results
	$(BIN)/python benchmarks/pipeline.py --output benchmarks/results
	$(BIN)/python benchmarks/branches.py --assets $(ASSETS) --output benchmarks/results
	$(BIN)/python benchmarks/planner.py --assets $(ASSETS) --output benchmarks/results
	$(BIN)/python benchmarks/large.py --output benchmarks/results
	$(BIN)/python benchmarks/arena.py --assets $(ASSETS) --output benchmarks/results
	$(BIN)/python benchmarks/per_node.py --assets $(ASSETS) --output benchmarks/results
	$(BIN)/python benchmarks/soak.py --assets $(ASSETS) --output benchmarks/results
	$(BIN)/python benchmarks/tiles.py --assets $(ASSETS) --output benchmarks/results
	$(BIN)/python benchmarks/sequence.py --output benchmarks/results
	$(BIN)/python benchmarks/freed.py --assets $(ASSETS) --output benchmarks/results

# Beside Ray Data, Spark, dask-ml and SAHI, in an environment of its own; two hours, or minutes with
# PEERS_ARGS=--short. A peer that does not install is left out, and the table says so.
bench-peers: $(PEERS_STAMP) assets
	$(PEERS)/bin/python benchmarks/peers/run.py --assets $(ASSETS) --output benchmarks/results $(PEERS_ARGS)

# Needs root, for network namespaces.
bench-network: $(STAMP) assets
	$(BIN)/python benchmarks/transfer.py --assets $(ASSETS) --output benchmarks/results
	$(BIN)/python benchmarks/delivery.py --output benchmarks/results

assets: $(STAMP)
	$(BIN)/python tests/assets/fetch.py $(ASSETS)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,lint]'
	touch $(STAMP)

$(PEERS_STAMP): pyproject.toml benchmarks/peers/requirements.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dataframe,images,parquet,text]'
	grep -v '^#' benchmarks/peers/requirements.txt | while read -r line; do \
		$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check "$$line" || echo "not installed: $$line"; \
	done
	touch $(PEERS_STAMP)

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $(DOCS_STAMP)

clean:
	rm -rf $(VENV) $(PEERS) .venv-minimum .venv-minimum-onnx .venv-upstream .cache demo-output htmlcov docs/_build docs/notebooks docs/reference/generated
