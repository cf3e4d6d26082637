# make help lists what there is. Everything runs in the active virtual environment, or else in
# .venv, which the first call makes (see install.sh).
#
#   make test PYTEST_FLAGS="-k order"            pass flags on to pytest
#   make demo DEMO_TRAIN_FLAGS="--set seed=1"    pass flags on to the demo's training
#   TORCH=cpu make demo                          leave the graphics card unused

SHELL := /bin/sh
ENV := $(shell PYTHON='$(PYTHON)' sh install.sh --where)
export PATH := $(ENV)/bin:$(PATH)

PYTEST_FLAGS ?=
DEMO_TRAIN_FLAGS ?=

.DEFAULT_GOAL := help
.PHONY: help env demo test check format clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1	\2/p' Makefile

env: ## make or update the environment
	@sh install.sh

demo: env ## draw synthetic leaves, pack, verify, measure, train, evaluate, predict (minutes)
	rm -rf data/demo runs/demo
	shardtool specimens data/demo/organized --species 6 --diseases 4 --images 240 --size 96 --long-tail
	shardtool pack data/demo/organized --out data/demo/shards
	shardtool verify data/demo/shards
	bench-io --quick --workers 2 --shards data/demo/shards/train
	train-hier --shards data/demo/shards/train --recipe small --out runs/demo --workers 2 $(DEMO_TRAIN_FLAGS)
	train-hier evaluate runs/demo --shards data/demo/shards/val
	find data/demo/organized/val -name val_00000.jpg | sort | xargs train-hier predict runs/demo --top 1
	@echo
	@echo "Where to look next:"
	@echo "  data/demo/organized    the photos: one folder a species, one a disease"
	@echo "  data/demo/shards       the shards: plain tar files, their index, dataset.json"
	@echo "  runs/demo              the run: its log, its checkpoints"
	@echo "The same with your photos: put them in data/organized (see data/README.md) and run"
	@echo "the commands above without 'demo/'. The commands are in $(ENV)/bin"

# loadfile: tests of one file share their fixtures (packed shards) in one process.
test: env ## run the tests
	python -m pytest -n 2 --dist loadfile $(PYTEST_FLAGS)

check: env ## formatting, lint, types, import directions
	ruff format --check
	ruff check
	python -m mypy
	lint-imports --no-logo

format: env ## format the code, fix what ruff can fix
	ruff format
	ruff check --fix

clean: ## remove caches, builds and the demo; keeps .venv, your data and your runs
	rm -rf data/demo runs/demo build dist *.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find shardtool train benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +
