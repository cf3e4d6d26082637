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
PILLOW_SIMD ?= 12.1.1.post0

.DEFAULT_GOAL := help
.PHONY: help env demo test check format simd simd-undo clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1	\2/p' Makefile

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

# Built before anything is removed, so that a failed build leaves Pillow in place. Both distributions are
# named PIL once imported, so both have to go first. --no-cache-dir: pip would take a wheel that it built
# without these CFLAGS. webp=enable: without libwebp's headers the build fails, not the reading of WebP photos.
simd: env ## replace Pillow by Pillow-SIMD, which lacks a security fix (see README)
	@grep -qw avx2 /proc/cpuinfo || { echo "make simd: this processor has no AVX2: keep Pillow" >&2; exit 1; }
	rm -rf build/simd
	CFLAGS=-mavx2 python -m pip wheel -q --no-cache-dir --no-deps --no-binary pillow-simd \
		--config-settings=webp=enable --wheel-dir build/simd pillow-simd==$(PILLOW_SIMD)
	python -m pip uninstall -q -y pillow pillow-simd
	python -m pip install -q --no-deps --no-index build/simd/*.whl
	@python -c 'import PIL; print("Pillow is now", PIL.__version__, "in", PIL.__path__[0])'
	@echo "'pip check' now misses pillow: it knows only that name, the imports are the same"

simd-undo: env ## take Pillow-SIMD out, put the tested Pillow back
	python -m pip uninstall -q -y pillow-simd pillow
	python -m pip install -q --no-deps -c constraints.txt pillow
	@python -c 'import PIL; print("Pillow is now", PIL.__version__, "in", PIL.__path__[0])'

clean: ## remove caches, builds and the demo; keeps .venv, your data and your runs
	rm -rf data/demo runs/demo build dist *.egg-info
	rm -f train/*.so
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find shardtool train benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +
