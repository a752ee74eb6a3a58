.DEFAULT_GOAL := help
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Lets mpirun start as root and with more ranks than cores; harmless elsewhere.
export OMPI_ALLOW_RUN_AS_ROOT := 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM := 1
export PRTE_MCA_rmaps_default_mapping_policy := :oversubscribe

SOURCES := $(wildcard hvd_compress/native/cpu/*.cpp hvd_compress/native/cpu/*.hpp hvd_compress/native/cpu/*.inc)

.PHONY: help setup demo test test-slow fuzz sanitize lint docs format pins wheels release clean

help:  ## list what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup:  ## set up .venv with everything that the others need; each of them does it first
	@bash scripts/setup.sh

demo: setup  ## train with several compressors on two processes, print a table, draw results/demo.png
	@python examples/demo.py

test: setup  ## run the tests
	@python -m pytest -m "not slow and not jobs" -n auto --maxprocesses 8
	@python -m pytest -m "not slow and jobs"

test-slow: setup  ## run the slow tests as well
	@python -m pytest -m "not jobs" -n auto --maxprocesses 8
	@python -m pytest -m jobs

fuzz: setup  ## run random training scripts on real ranks; OPTIONS=--help tells of options
	@python scripts/fuzz_training.py $(OPTIONS)

sanitize: setup  ## test and fuzz the kernels, built with AddressSanitizer and UndefinedBehaviorSanitizer
	@bash scripts/sanitize.sh

lint: setup  ## check style and types
	@ruff check . && ruff format --check . && clang-format --dry-run -Werror $(SOURCES) && mypy

docs: setup  ## build the documentation in site/; a warning is an error
	@TF_CPP_MIN_LOG_LEVEL=3 python -m sphinx -q -W --keep-going -b html docs site && echo "written: site/index.html"

format: setup  ## bring the code into style
	@ruff check --fix-only . ; ruff format . && clang-format -i $(SOURCES)

pins: setup  ## write the exact versions for this Python from requirements/setup.in
	@python scripts/pins.py

wheels: setup  ## build the source distribution and wheels for CPython 3.10 to 3.13 in dist/, and check them
	@bash scripts/wheels.sh

release: setup  ## build and check a release, and say how to publish it
	@bash scripts/release.sh

clean:  ## remove the environment and what was made in it
	rm -rf .venv build *.egg-info results site docs/pictures .pytest_cache .mypy_cache .ruff_cache
