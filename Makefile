# nexuslab: make train | test | lab | docs | bench | attack | lint
PYTHON ?= python3
VENV   ?= .venv
# A CPU build of PyTorch where the default would bring CUDA: make train TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
BIN := $(VENV)/bin
SUDO := $(shell [ "$$(id -u)" = 0 ] || command -v sudo)
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONUTF8 := 1

.DEFAULT_GOAL := help
.PHONY: help install train test notebooks unit lab docs bench attack lint readme export tools clean

help:                ## what can be made
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:[^#]*##/:/'

install: $(VENV)/.installed ## create .venv with what constraints.txt pins

$(VENV)/.installed: settings.ini setup.py constraints.txt lab_config.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "nexuslab needs Python 3.11 or later: make PYTHON=python3.11 ..."; exit 1; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV) || { echo "the venv module is missing: apt-get install python3-venv"; exit 1; }
	@echo 'installing into $(VENV): some minutes'
	$(BIN)/python -m pip install -q -c constraints.txt torch $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@mkdir -p $(VENV)/etc/jupyter && cp lab_config.py $(VENV)/etc/jupyter/jupyter_server_config.py
	@touch $@

train: install       ## train the circuits system for 200 epochs and print its test figures
	$(BIN)/nexuslab train --epochs 200

tools:               ## programs the tests use: ngspice, chromium, postgresql
	@if command -v apt-get >/dev/null; then \
	   missing=""; for p in ngspice:ngspice chromium:chromium psql:postgresql; do command -v $${p%%:*} >/dev/null || missing="$$missing $${p##*:}"; done; \
	   if [ -n "$$missing" ]; then $(SUDO) apt-get update -qq && DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $$missing >/dev/null || echo "could not install$$missing: tests that need them are skipped"; fi; \
	 elif command -v brew >/dev/null; then command -v ngspice >/dev/null || brew install ngspice || echo "could not install ngspice: its tests are skipped"; fi

test: install tools notebooks unit ## everything: notebooks, then pytest

notebooks: install   ## nbdev_test over all notebooks
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2

unit: install        ## pytest
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup tests

lab: install         ## JupyterLab on the tour, on this machine only
	$(BIN)/jupyter lab --ip=127.0.0.1 nbs/00_tour.ipynb

docs: install        ## the documentation site, in _docs/
	$(BIN)/python docs/build.py

bench: install       ## figures of speed and memory
	$(BIN)/python -m pytest tests/benchmarks -q -s -o python_files='bench_*.py'

attack: install      ## damage, hostile files, failing operations, fuzz and kills on run directories: an hour of one core
	cd tests && OMP_NUM_THREADS=1 nice $(CURDIR)/$(BIN)/python -m attack

lint: install        ## ruff over notebooks and tests
	$(BIN)/ruff check nbs tests setup.py

export: install      ## notebooks to modules, and README from the index
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(MAKE) readme

readme: install      ## README.md from nbs/index.ipynb
	$(BIN)/jupyter nbconvert --log-level WARN --to markdown --output-dir . --output README nbs/index.ipynb
	sed -i.bak "s|](images/|](nbs/images/|" README.md && rm README.md.bak

clean:               ## remove what was built (not data/ and runs/)
	rm -rf build dist _docs _proc *.egg-info .pytest_cache .ruff_cache
