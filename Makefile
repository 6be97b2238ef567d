# make demo | test | test-long | test-native | test-asan | test-arm | mutants | lint
# each sets up .venv first; make native rebuilds the cpu engine's library (docs/developing.md)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup
NATIVE := $(wildcard native/*.txt native/inplace/*.txt native/src/* native/src/isa/*)
LIBRARY := src/torchdelta/engines/cpu/libtorchdelta_native.so
# the CMake and Ninja of .venv, where the system has none
CMAKE := PATH="$$PATH:$(CURDIR)/$(BIN)" cmake
CASES := build/native_cases.bin

.PHONY: venv native demo test test-long test-native test-asan test-arm mutants lint clean

venv: $(VENV)/.installed $(LIBRARY)

$(VENV)/.installed: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is $$($(PYTHON) -V 2>&1 || true), torchdelta needs Python 3.11 or newer:" \
		"make PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

# pip goes on without the library where its build fails; here that is an error
$(LIBRARY): $(NATIVE) | $(VENV)/.installed
	@if command -v $(CXX) >/dev/null || command -v c++ >/dev/null; then \
		$(MAKE) --no-print-directory native; \
	else echo "no C++ compiler: the cpu engine is left out"; fi

# the build folder may be pip's, with a CMake that is gone by now
native: $(VENV)/.installed
	@rm -f native/inplace/CMakeCache.txt
	@$(CMAKE) -S native/inplace -B native/inplace -G Ninja -DCMAKE_BUILD_TYPE=Release >/dev/null
	@$(CMAKE) --build native/inplace
	@touch -c $(LIBRARY)

demo: venv
	$(BIN)/torchdelta demo

# one thread per worker, two workers on two cores; tests that use more must not spin
ONE_THREAD := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive

test: venv
	$(ONE_THREAD) $(PYTEST)

test-long: venv
	$(ONE_THREAD) TORCHDELTA_LONG=1 $(PYTEST)

mutants: venv
	$(ONE_THREAD) $(BIN)/python tools/mutants.py

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist out .pytest_cache .mypy_cache .ruff_cache .hypothesis
