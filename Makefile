# `make demo` and `make test` need Python 3.11 or newer, pip, git and make; the rest they fetch.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ASSETS := .cache/assets
STAMP := $(VENV)/.installed

.PHONY: test test-slow test-minimum test-upstream coverage lint demo conformance conversions registry bench bench-network assets clean

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

clean:
	rm -rf $(VENV) .venv-minimum .venv-upstream .cache demo-output htmlcov
