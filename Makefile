# make check | demo | test | test-long | test-oldest | test-newest | test-gpu | test-gpu-long
# | sanitize-gpu | test-native | test-asan | test-arm | mutants | mutants-all | lint | docs
# each sets up .venv first; make native rebuilds the cpu engine's library (docs/developing.md)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup
NATIVE := $(wildcard native/*.txt native/*.map native/inplace/*.txt native/src/* native/src/isa/*)
LIBRARY := src/torchdelta/engines/cpu/libtorchdelta_native.so
# the CMake and Ninja of .venv, where the system has none
CMAKE := PATH="$$PATH:$(abspath $(BIN))" cmake
CASES := build/native_cases.bin
PACKAGE := $(shell find src/torchdelta -name '*.py')
ARM_CXX := aarch64-linux-gnu-g++
ARM_QEMU := qemu-aarch64-static
COMMA := ,
# tests start many processes: each would compile all that it imports, PyTorch first
unexport PYTHONDONTWRITEBYTECODE

.PHONY: venv native demo check test test-long test-oldest test-newest test-gpu test-gpu-long sanitize-gpu \
	test-native test-asan test-arm arm-tools mutants mutants-all lint docs clean

venv: $(VENV)/.installed $(LIBRARY)

# the build folder may be another one's, with a CMake that is gone by now
build_native = rm -f native/inplace/CMakeCache.txt; \
	$(CMAKE) -S native/inplace -B native/inplace -G Ninja -DCMAKE_BUILD_TYPE=Release >/dev/null && \
	$(CMAKE) --build native/inplace
HAS_CXX := command -v $(CXX) >/dev/null || command -v c++ >/dev/null

# --no-compile: what is imported is compiled then; PyTorch and its companions hold far more.
# wheel.cmake=false: the native library is built here, where this machine has CMake and Ninja while
# pip unpacks PyTorch (what goes wrong is said below, where it is built again). scikit-build-core comes
# first: pip would take any version of it to build with, whatever the constraints say
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
	--constraint constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is $$($(PYTHON) -V 2>&1 || true), torchdelta needs Python 3.11 or newer:" \
		"make PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@if [ ! -e $(LIBRARY) ] && command -v cmake >/dev/null && command -v ninja >/dev/null && \
		{ $(HAS_CXX); }; then { $(build_native); } >/dev/null 2>&1 & fi; \
	echo "installing torchdelta and its tools into $(VENV)"; \
	$(PIP_INSTALL) scikit-build-core && \
	$(PIP_INSTALL) --no-build-isolation --config-settings=wheel.cmake=false -e ".[dev]" && wait
	touch $@

$(LIBRARY): $(NATIVE) | $(VENV)/.installed
	@if $(HAS_CXX); then $(MAKE) --no-print-directory native; \
	else echo "no C++ compiler: the cpu engine is left out"; fi

native: $(VENV)/.installed
	@$(build_native)
	@touch -c $(LIBRARY)

demo: venv
	$(BIN)/torchdelta demo

# one thread per worker, two workers on two cores; tests that use more must not spin. Some virtual
# machines announce AMX and do not have it: PyTorch's half precision would end in an illegal
# instruction there
ONE_THREAD := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16

# Triton's interpreter is chosen before Triton is imported: a process of its own. pytest exits with 5
# where all was skipped, for want of Triton; TORCHDELTA_REQUIRE=triton-interpreter makes that an error
INTERPRETED := TRITON_INTERPRET=1 $(PYTEST) \
	$(addprefix tests/test_,triton.py triton_frames.py weights.py complex.py) || test $$? = 5

# what a change most often breaks, within a minute: on the torch engine, and on the cpu engine's best
# instruction set
check: lint
	$(ONE_THREAD) $(PYTEST) -m check

test: venv
	$(ONE_THREAD) $(PYTEST)
	$(ONE_THREAD) $(INTERPRETED)

test-long: venv
	$(ONE_THREAD) TORCHDELTA_LONG=1 $(PYTEST)
	$(ONE_THREAD) TORCHDELTA_LONG=1 $(INTERPRETED)

# a cross-section of the tests in an environment of its own, which is taken away afterwards: with the
# oldest versions that pyproject.toml allows, with the newest that pip finds
test-oldest test-newest: test-%:
	$(ONE_THREAD) $(PYTHON) tools/other_versions.py $*

# whatever runs on a GPU; no GPU is an error. Compiling the kernels takes the CPU most of the time
GPU_WORKERS ?= 8

test-gpu: venv
	TORCHDELTA_REQUIRE=cuda $(PYTEST) -n $(GPU_WORKERS) -m gpu

# 20,000 frames of streams that come and go, in each dtype
test-gpu-long: venv
	TORCHDELTA_REQUIRE=cuda TORCHDELTA_LONG=1 $(PYTEST) -n 3 -m "gpu and long" tests

# compute-sanitizer over the op cases and sessions of many kinds: make sanitize-gpu PART=1/12
PART ?= 1/1

sanitize-gpu: venv
	$(BIN)/python tools/sanitize_gpu.py --part $(PART)

# the op cases without Python (native/tests/runner.cpp): on this CPU's instruction sets, under
# sanitizers, on an emulated AArch64
$(CASES): tools/native_cases.py tests/cases.py tests/support.py $(PACKAGE) | venv
	$(ONE_THREAD) $(BIN)/python -W ignore tools/native_cases.py $@

# $(call runner,FOLDER,OPTIONS): builds build/FOLDER/native_runner
runner = $(CMAKE) -S native -B build/$(1) -G Ninja -DTORCHDELTA_RUNNER=ON $(2) >/dev/null && \
	$(CMAKE) --build build/$(1) --target native_runner

test-native: $(CASES)
	@$(call runner,runner)
	build/runner/native_runner $(CASES)

test-asan: $(CASES)
	@$(call runner,asan,-DTORCHDELTA_SANITIZE=address$(COMMA)undefined)
	build/asan/native_runner $(CASES)

test-arm: arm-tools $(CASES)
	@$(call runner,arm,-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
		-DCMAKE_CXX_COMPILER=$(ARM_CXX) -DCMAKE_EXE_LINKER_FLAGS=-static)
	$(ARM_QEMU) build/arm/native_runner $(CASES)

arm-tools:
	@command -v $(ARM_CXX) >/dev/null && command -v $(ARM_QEMU) >/dev/null || { echo "test-arm needs" \
		"$(ARM_CXX) and $(ARM_QEMU): apt-get install g++-aarch64-linux-gnu qemu-user-static" >&2; \
		exit 1; }

# about one known fault for each invariant and engine, each noticed by another test; all of them
mutants: venv
	$(ONE_THREAD) $(BIN)/python tools/mutants.py

mutants-all: venv
	$(ONE_THREAD) $(BIN)/python tools/mutants.py --all

# tables and charts of docs/performance.md, from benchmarks/results/
docs: venv
	$(BIN)/python tools/performance_page.py

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist out .pytest_cache .mypy_cache .ruff_cache .hypothesis $(LIBRARY)
	find native/inplace -mindepth 1 ! -name CMakeLists.txt -delete
