# Everything needs python3 (3.11 or newer with venv) and make; each target builds the environment it runs in.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# The oldest release of OpenTelemetry that pyproject.toml allows; constraints.txt has the newest.
OLDEST := 1.43.0
OLD    := $(VENV)/opentelemetry-$(OLDEST)

.DEFAULT_GOAL := help
.PHONY: help demo test oldest soak lint types bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY) ## train a digits classifier twice on two ranks, into three trackers
	WANDB_MODE=offline $(BIN)/python examples/demo/demo.py

# A file's tests stay on one worker, so that a server it starts is started once; tests/conftest.py has their order.
test: $(READY) ## the whole suite
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

$(OLD)/.ready: $(READY)
	$(BIN)/python -m pip install -qq --disable-pip-version-check --target $(OLD) \
	  opentelemetry-api==$(OLDEST) opentelemetry-sdk==$(OLDEST)
	@touch $@

oldest: $(OLD)/.ready ## what meets OpenTelemetry, with the oldest release that is supported
	PYTHONPATH=$(CURDIR)/$(OLD) $(BIN)/python -m pytest --numprocesses 2 --dist loadfile tests/test_provider.py \
	  tests/test_spans.py tests/test_steps.py tests/test_traces.py tests/test_logs.py tests/test_downstream.py \
	  tests/journal/test_enclosing_spans.py tests/test_sdk_exporters.py tests/test_distributions.py

soak: $(READY) ## the tests that come in two sizes, at their full size
	$(BIN)/python -m pytest -m soak --full-size

lint: $(READY) ## ruff: rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

# Then an error is planted: a type checker that looks past a package finds no error in it.
types: $(READY) ## mypy, strict
	$(BIN)/mypy
	@printf 'from otel_tracking_exporters.tensorboard import TensorBoardTracker\nTensorBoardTracker.name + 1\n' \
	  > $(VENV)/planted.py
	@$(BIN)/mypy $(VENV)/planted.py | grep --quiet '\[operator\]' \
	  || { echo 'mypy does not see into otel_tracking_exporters' >&2; exit 1; }

bench: $(READY) ## costs, each beside its peer in the same run
	$(BIN)/python -m benchmarks

clean: ## remove what these targets made
	rm -rf $(VENV) outputs build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
