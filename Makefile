# `make demo` and `make test` need Python >= 3.10, make and a network for pip; no GPU, no CUDA toolkit.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint bench compile-gate gpu-check coverage sanitize mutants clean

demo: $(STAMP)
	$(BIN)/python -m benchmarks demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m pytest benchmarks --benchmark-enable $(ARGS)

# Every kernel for every architecture, and the binary; needs no GPU, and installs nvcc where there is none.
compile-gate: $(STAMP)
	$(BIN)/python tests/compile_gate.py $(ARGS)

# Which lines of the kernels the tests of the operators execute.
coverage: $(STAMP)
	$(BIN)/python tests/coverage_gate.py $(ARGS)

# The kernels under AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: $(STAMP)
	$(BIN)/python tests/sanitize_gate.py $(ARGS)

# Single faults put into the kernels, each of which the tests must notice; takes hours, --only a part of them.
mutants: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m mutants $(ARGS)

# All that only a GPU can show, inside so many minutes; --confirmed, which needs none, says what its records confirm.
MINUTES ?= 20
gpu-check: $(STAMP)
	$(BIN)/python tests/gpu_check.py --minutes $(MINUTES) $(ARGS)

# Installed anew only when what it was made from has changed.
$(STAMP): pyproject.toml constraints.txt setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(f"expected Python >= 3.10, got {v[0]}.{v[1]}; set PYTHON=" if v < (3, 10) else 0)'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); }
	JPU_CUDA_KERNELS=off $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build out *.egg-info
