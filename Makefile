# make demo | test | test-long | mutants | lint   (each sets up .venv first)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup

.PHONY: venv demo test test-long mutants lint clean

venv: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is $$($(PYTHON) -V 2>&1 || true), torchdelta needs Python 3.11 or newer:" \
		"make PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

demo: venv
	$(BIN)/torchdelta demo

# one thread per worker: two workers on two cores
test: venv
	OMP_NUM_THREADS=1 $(PYTEST)

test-long: venv
	OMP_NUM_THREADS=1 TORCHDELTA_LONG=1 $(PYTEST)

mutants: venv
	OMP_NUM_THREADS=1 $(BIN)/python tools/mutants.py

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist out .pytest_cache .mypy_cache .ruff_cache .hypothesis
