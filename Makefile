# Every target makes .venv and installs what it needs first, so a fresh clone needs nothing but Python 3.10+, a C++
# compiler and this file. `demo` installs the package alone; the others add the developers' packages.
#
#   make demo    reconstruct a public-domain photograph, results in out/
#   make test    the tests          make lint    style, types, who imports whom
#   make docs    the documentation site, in build/site; links and docstrings with faults are errors
#   make wheel-test    build a wheel, install it without a compiler, reconstruct a face with it
#   make asan    the native kernels' fuzz tests under AddressSanitizer and UndefinedBehaviorSanitizer (GCC or Clang, x86)
#   make interop opens GLB, VRM and USDZ in other programs, which go into build/ (3.4 GB); needs Node.js and Chromium
#   make studio  builds the page of mien studio and the single-file viewer from studio/; needs Node.js
#   make studio-test  drives the page in Chromium (2 minutes), which it installs where it can; needs Node.js
#   make studio-baselines  keeps the present look of the page as the one that studio-test expects
#   make lowest  the tests with the lowest versions that pyproject.toml allows (torch apart); needs Python 3.10 to 3.12
#   make ray     the tests of --engine ray on two machines, both of them here (some minutes; 250 MB)
#   make chaos   kills, damaged files, full disks, two writers, small memory (PARTS, TRIES; 20 minutes)
#   make mutants small changes of the source, and how many of them the tests notice (SEED=0 COUNT=80, half an hour)
#   make bench   the benchmarks, on the photos and heads in DATA
#   make format  what lint would ask for        make clean   remove everything that was made
#
# PYTHON=python3.12 chooses the interpreter. Torch is always the build without CUDA (it also runs the tests and is 4 GB
# smaller): from the indexes pip is set up with, or else from TORCH_INDEX.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= out
DATA ?= ../shared/data
# One thread a process and a process a core: tests are small, and waiting threads would take turns spinning.
PYTEST_ARGS ?= -n auto --dist loadfile
WHEELS ?= build/wheels
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)
# Wheels for Linux say which build they are; those for macOS have no CUDA to leave out.
TORCH := torch==$(TORCH_VERSION)$(if $(filter Linux,$(shell uname -s)),+cpu)
PACKAGE := $(VENV)/.package
INSTALLED := $(VENV)/.installed

SEED ?= 0
COUNT ?= 80
INTEROP := build/interop
READERS := build/interop-venv
BROWSER_READERS := build/interop-node
LOWEST := build/lowest
LOWEST_TESTS ?= tests/test_*.py tests/formats tests/networks tests/training/test_[c-w]*.py
PARTS ?= all
TRIES ?= 0

.PHONY: demo test docs wheel wheel-test asan interop studio studio-test studio-baselines lowest ray chaos mutants bench lint format clean
.DELETE_ON_ERROR:

demo: $(PACKAGE)
	$(BIN)/python examples/00_demo.py $(OUT)

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

# Material announces the end of MkDocs and of itself at each build; docs/dependencies.md has what follows from it.
# No --quiet: MkDocs 1.6.1 then no longer counts warnings, and --strict passes.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The wheel is built from the source archive, as on other people's machines.
wheel: $(INSTALLED)
	rm -rf $(WHEELS)
	$(BIN)/python -m build --outdir $(WHEELS)

# WHEELS=FOLDER tests wheels that are there already.
wheel-test: $(INSTALLED) $(if $(filter file,$(origin WHEELS)),wheel)
	TORCH='$(TORCH)' TORCH_INDEX='$(TORCH_INDEX)' $(BIN)/python .ci/wheel_test.py $(WHEELS)

# Leaks are Python's own; hypothesis draws thousands of calls, then the C++ driver is fuzzed without Python around it.
asan: $(INSTALLED)
	$(BIN)/pip install --quiet 'nanobind>=2.4' cmake
	$(BIN)/cmake -S . -B build/asan -DMIEN_SANITIZE=ON -DPython_EXECUTABLE=$(BIN)/python \
		-Dnanobind_DIR=$$($(BIN)/python -m nanobind --cmake_dir)
	$(BIN)/cmake --build build/asan --parallel 2
	MIEN_NATIVE_MODULE=$$(ls $(CURDIR)/build/asan/_native*.so) ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=1 \
		LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
		$(BIN)/python -m pytest -p no:cacheprovider tests/rasterizer/test_fuzz.py
	sh tests/rasterizer/sanitizer/run.sh

# Not part of the tests: other projects' releases decide whether it passes. docs/outputs.md has its table.
interop: $(INSTALLED) $(READERS)/.installed $(BROWSER_READERS)/.installed
	rm -rf $(INTEROP)
	$(BIN)/python examples/00_demo.py $(INTEROP) --formats glb,obj,npz
	$(BIN)/mien model phenotype --out $(INTEROP)/phenotype
	[ ! -d $(DATA)/demo ] || $(BIN)/mien reconstruct $(DATA)/demo --formats npz --out $(INTEROP)/portraits
	$(BIN)/python -m tests.interop.inputs $(INTEROP) $(DATA) > $(INTEROP)/folders
	$(READERS)/bin/python -W ignore -m tests.interop.table docs/outputs.md $$(cat $(INTEROP)/folders)
	$(READERS)/bin/python -W ignore -m tests.interop.recipes $(INTEROP)/astronaut/face0 $(INTEROP)/off_centre
	$(READERS)/bin/python -W ignore -m tests.interop.heads $(INTEROP) $$(grep face0 $(INTEROP)/folders)
	$(READERS)/bin/python -W ignore -m tests.interop.motion $(INTEROP)/motion.png $(INTEROP)/motion

$(READERS)/.installed: tests/interop/requirements.txt
	$(PYTHON) -m venv $(READERS)
	$(READERS)/bin/pip install --quiet --requirement $<
	touch $@

# Chromium is the system's: CHROMIUM=FILE names another.
$(BROWSER_READERS)/.installed: tests/interop/package.json
	mkdir -p $(BROWSER_READERS)
	cp $< $(BROWSER_READERS)
	cd $(BROWSER_READERS) && npm install --ignore-scripts --no-package-lock --no-audit --no-fund
	touch $@

# What it builds is committed, so that the wheel needs no Node.js; a test compares it with its sources.
# Not `npm ci`: it refuses a lock without the packages for other systems, which not every registry has.
studio:
	cd studio && npm install --ignore-scripts --no-audit --no-fund && npm run build

# CHROMIUM=FILE names another browser than the system's. Without Node.js or Chromium the checks are skipped by name.
studio-test: $(INSTALLED)
	$(BIN)/python -m tests.studio.in_browser

studio-baselines: $(INSTALLED)
	$(BIN)/python -m tests.studio.in_browser "looks as before" --renew

# Shapes are not checked, because the plugin of jaxtyping 0.2.34 refuses a package that conftest.py has imported.
lowest: $(LOWEST)/.installed
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest $(PYTEST_ARGS) -o addopts=-q -o filterwarnings=default $(LOWEST_TESTS)

$(LOWEST)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet uv
	echo "torch; sys_platform == 'none'" > $(LOWEST)/without_torch.txt
	$(LOWEST)/bin/uv pip compile --quiet --resolution lowest-direct --override $(LOWEST)/without_torch.txt \
		--python $(LOWEST)/bin/python --extra formats --extra raw --extra url --extra train --extra onnx \
		--output-file $(LOWEST)/lowest.txt pyproject.toml
	$(LOWEST)/bin/pip install --quiet --no-deps '$(TORCH)' 2>/dev/null || \
		$(LOWEST)/bin/pip install --quiet --no-deps --index-url $(TORCH_INDEX) '$(TORCH)'
	$(LOWEST)/bin/pip install --quiet --constraint $(LOWEST)/lowest.txt --requirement $(LOWEST)/lowest.txt '$(TORCH)' \
		pytest pytest-xdist hypothesis beartype trimesh onnxruntime scikit-image
	$(LOWEST)/bin/pip install --quiet --no-deps --editable .
	touch $@

# Not part of the tests: Ray's processes take longer to start than all of them. Where Ray is installed, `make test` runs them.
ray: $(INSTALLED)
	$(BIN)/pip install --quiet --constraint constraints.txt 'mien[ray]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_ray.py

# Not part of CI's core: twenty minutes, and what it finds depends on the clock. docs/security.md has its table.
chaos: $(INSTALLED)
	$(BIN)/python -m tests.chaos --only $(PARTS) --tries $(TRIES) --seed $(SEED)

mutants: $(INSTALLED)
	$(BIN)/python -m tests.mutants --seed $(SEED) --count $(COUNT)

bench: $(INSTALLED)
	PYTHON=$(BIN)/python sh benchmarks/run_all.sh $(DATA)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist out .pytest_cache .ruff_cache .import_linter_cache .hypothesis

# The package is installed in place, so only what is compiled or declared asks for another installation.
$(PACKAGE): pyproject.toml CMakeLists.txt constraints.txt $(wildcard src/mien/rasterizer/csrc/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-deps '$(TORCH)' 2>/dev/null || \
		$(BIN)/pip install --quiet --no-deps --index-url $(TORCH_INDEX) '$(TORCH)'
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

# Not from this folder, which would compile the package again: it is there, and pip adds what the two extras name.
$(INSTALLED): $(PACKAGE)
	$(BIN)/pip install --quiet --constraint constraints.txt 'mien[dev,docs]'
	touch $@
