# Everything lives in .venv of this checkout. `make help` lists the targets.
#   PYTHON=/path/to/python3.12     interpreter (default: the newest of 3.13 and 3.12)
#   TORCH_INDEX_URL=...            index of a CPU or CUDA build of torch
#   JOBS=...                       trainings at a time of `make experiments`

export PYTHON TORCH_INDEX_URL
# small matrices: more threads per process cost more than they bring
OMP_NUM_THREADS ?= 1
export OMP_NUM_THREADS

RUN := .venv/bin/python
RECIPE := egs2/smoe_asr_st
SHELL_SCRIPTS := .ci/run $(wildcard tools/*.sh $(RECIPE)/*.sh $(RECIPE)/local/*.sh)

# trainings that `make experiments` runs at a time, one thread each
JOBS ?= $(shell getconf _NPROCESSORS_ONLN)

.PHONY: help install demo experiments test test-all test-slow bench lint clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 20

install: ## .venv with everything
	@bash tools/install.sh

demo: install ## corpus, training, decoding, scores on this machine
	cd $(RECIPE) && ./run.sh
	@cat $(RECIPE)/exp/smoe_demo/decode/RESULTS.md

experiments: install ## baselines and ablations on the demo corpus, one table (hours)
	cd $(RECIPE) && ../../$(RUN) -m espnet_smoe.bin.smoe_experiments \
		--list conf/demo/experiments.yaml --jobs $(JOBS)

test: install ## the test suite without its slow tests
	$(RUN) -m pytest -m "not slow"

test-slow: install ## the slow tests alone
	$(RUN) -m pytest -m slow

test-all: install ## every test
	$(RUN) -m pytest

bench: install ## benchmarks against stock ESPnet and the hard-sharing twin
	@status=0; for bench in benchmarks/bench_*.py; do \
		if [ ! -f "$$bench" ]; then echo "make bench: no benchmarks/bench_*.py" >&2; exit 1; fi; \
		echo "== $$bench"; $(RUN) "$$bench" || status=1; \
	done; exit $$status

lint: install ## style of Python and shell
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	.venv/bin/shellcheck $(SHELL_SCRIPTS)

clean: ## remove .venv and caches; corpora and experiments stay
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find espnet_smoe tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
