# Everything starts here: a machine with Python 3.11 and nothing else of ours is enough.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: demo test test-slow test-gpu lint types bench reproduce clean help

help:  ## show what can be made
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1	/' | expand -t 20

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; set PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $(READY)

setup: $(READY)

demo: $(READY)  ## cluster scikit-learn's digits and open the report
	$(RUN) train.py

test: lint types  ## lint, types and the fast tests
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadscope  # what a module sets up once is set up once

test-slow: $(READY)  ## the long tests: kills, real data, sweeps
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadscope -m slow

test-gpu: $(READY)  ## what needs a GPU
	$(RUN) -m pytest -m gpu

lint: $(READY)  ## ruff
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: $(READY)  ## mypy
	$(RUN) -m mypy

bench: $(READY)  ## speed, as ratios to plain implementations measured in the same run
	$(RUN) scripts/bench.py

reproduce: $(READY)  ## train the experiments that need no download and write RESULTS.md: two and a half hours
	$(RUN) scripts/reproduce.py seeds=0,1,2,3,4

clean:  ## remove the environment and the caches, not the runs
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
