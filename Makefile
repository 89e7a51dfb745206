# What people run is what CI runs. `make demo` and `make test` need nothing but Python 3.11+ and the package registries.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := benchmarks/peers
RESULTS := benchmarks/results
LIBRARIES := sae-lens eai-sparsify dictionary-learning circuit-tracer

.PHONY: demo test test-long setup check clean demo-network zoo bench bench-peers

demo: $(STAMP)
	$(BIN)/understudy demo

test: $(STAMP)
	$(BIN)/python -m pytest

# Real sizes, and organisms that take a minute or two to train.
test-long: $(STAMP)
	$(BIN)/python -m pytest -m long

setup: $(STAMP)

# torch first and alone: a resolver that meets it later may choose a build with gigabytes of CUDA.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Understudy needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' requirements.lock)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest tests/test_layers.py tests/test_docs.py

demo-network: $(STAMP)
	$(BIN)/python recipes/demo_network.py

zoo: $(STAMP)
	$(BIN)/python -m tests.zoo.table > docs/zoo.md

# On a machine that does nothing else: about ten minutes, and forty beside other libraries once they are installed.
bench: $(STAMP)
	$(BIN)/understudy bench step --out $(RESULTS)/step.json
	$(BIN)/understudy bench harvest --out $(RESULTS)/harvest.json

bench-peers: $(STAMP) $(patsubst %,$(PEERS)/%/.installed,$(LIBRARIES))
	$(BIN)/understudy bench quality --peers --peers-folder $(PEERS) --out $(RESULTS)/quality.json
	$(BIN)/understudy bench step --peers --peers-folder $(PEERS) --out $(RESULTS)/step-peers.json

# Each in an environment of its own, as their requirements differ. eai-sparsify takes its GPU kernels where it finds
# triton, and does not run without a GPU then.
$(PEERS)/%/.installed: requirements.lock
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' requirements.lock)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check $*
	$(@D)/bin/python -m pip uninstall --quiet --yes triton
	@touch $@

clean:
	rm -rf build dist src/*.egg-info .pytest_cache .ruff_cache
