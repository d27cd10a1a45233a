# K-Net for Detectron2. `make` alone says what there is.

PYTHON ?= python3
PIP_ARGS ?=
# processes that share the tests; more than four cost more memory than they save time
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); echo $$((n < 4 ? n : 4)))

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
# constraints.txt holds versions for Python 3.11 and newer; older ones use the ranges of setup.py.
CONSTRAINTS = $$($(BIN)/python -c 'import sys; print("-c constraints.txt" * (sys.version_info >= (3, 11)))')

.PHONY: help install demo test test-quick lint docs package
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help:
	@echo "make install   set up everything in $(VENV): PyTorch, Detectron2 v0.6, K-Net (some minutes, 6 GB)"
	@echo "make demo      install, then run demo/run_demo.py"
	@echo "make test      install, then run the tests"
	@echo "make test-quick   the same without those that take seconds, a browser or an export"
	@echo "make lint      install, then ruff and mypy"
	@echo "make docs      install, then build the documentation site in build/docs"
	@echo "make package   install, then build wheel and source archive in dist and try them"
	@echo ""
	@echo "PYTHON=python3.12 make install   uses another interpreter (3.10 or newer)"
	@echo "PIP_ARGS=...                     is handed to every 'pip install'"
	@echo "You have Detectron2 already? Then no make is needed: pip install -e ."

install: $(STAMP)
	@:

demo: $(STAMP)
	$(BIN)/python demo/run_demo.py

test: $(STAMP)
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal tests

test-quick: $(STAMP)
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m "not slow and not browser and not export" tests

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
	@echo "open build/docs/index.html"

# the wheel and the source archive, each tried from an empty folder
package: $(STAMP)
	$(BIN)/python tools/check_wheel.py --out dist

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy projects/knet projects/knet_run

# The stamp is written last: an interrupted install starts again where pip left off.
$(STAMP): setup.py constraints.txt tools/build_detectron2_wheel.py
	@command -v $(PYTHON) >/dev/null || { \
	  echo "error: '$(PYTHON)' is not there; name an interpreter: make install PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "error: Python 3.10 or newer is needed, this is `$(PYTHON) -V 2>&1`; see PYTHON in 'make help'"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "error: $(PYTHON) lacks venv and pip (on Debian and Ubuntu: the package python3-venv)"; exit 1; }
	@echo "Setting up $(VENV): this downloads PyTorch and takes some minutes and 6 GB of disk."
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	# pip 26.3 and newer refuse source archives whose unused extras name a URL, as Detectron2's does
	@$(PIP) install --quiet $(PIP_ARGS) 'pip<26.3'
	@echo "[1/4] PyTorch"
	@$(PIP) install $(PIP_ARGS) $(CONSTRAINTS) setuptools torch torchvision
	@echo "[2/4] Detectron2 v0.6 as a pure-Python wheel"
	@rm -rf build/wheels
	@$(BIN)/python tools/build_detectron2_wheel.py --out build/wheels
	@echo "[3/4] K-Net, Detectron2 and the tools"
	@$(PIP) install $(PIP_ARGS) $(CONSTRAINTS) build/wheels/*.whl -e '.[opencv,dev,lite]'
	@$(PIP) install --quiet --no-deps --force-reinstall build/wheels/*.whl
	@echo "[4/4] Check"
	@$(PIP) check
	@$(BIN)/python -W ignore -c 'import knet, detectron2.engine, detectron2.evaluation; print("knet", knet.__version__, "is ready in $(VENV)")'
	@touch $@
