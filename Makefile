# `make quickstart` and `make test` set up `.venv` from requirements.txt first, once.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
EXTRAS = .extras
CUDA = .extras_cuda
READY = $(VENV)/.ready
SEED ?= 0

.PHONY: help setup quickstart test test-beam test-all lint types clean

help:
	@echo "make quickstart [SEED=n]  the whole method on a closed world, in minutes on two CPU cores"
	@echo "make test                 the tests (about 11 minutes); make test-all: the slow ones too"
	@echo "make test-beam            those that need Apache Beam, which it puts into .extras"
	@echo "make lint | types         ruff | mypy"
	@echo "make setup                .venv alone"

setup: $(READY)

$(READY): requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $(READY)

quickstart: $(READY)
ifeq ($(SEED),0)
	$(RUN) launch/run.py --recipe=quickstart
else
	$(RUN) launch/run.py --recipe=quickstart --gin.SEED=$(SEED) --gin.WORKDIR="'runs/quickstart_seed$(SEED)'"
endif

test: $(READY)
	$(RUN) -m pytest -n 2 -m "not slow"

# Beam, libtpu and JAX's CUDA plugin: only tests need them, and beside the requirements they would be
# found by every run; the plugin by every test of the whole, too.
$(EXTRAS)/.ready: requirements-beam.txt $(READY)
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(EXTRAS) --requirement requirements-beam.txt libtpu==0.0.42.1
	touch $@

BEAM_TESTS = tests/beam_grounding_test.py tests/beam_launchers_test.py tests/retrieval/beam_blocks_test.py tests/core/pipelines_test.py

test-beam: $(READY) $(EXTRAS)/.ready
	PYTHONPATH=$(EXTRAS) $(RUN) -m pytest -n 2 -m "not slow" $(BEAM_TESTS)

$(CUDA)/.ready: pyproject.toml $(READY)
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(CUDA) jax-cuda12-plugin==0.10.2 jax-cuda12-pjrt==0.10.2
	touch $@

test-all: $(READY) $(EXTRAS)/.ready $(CUDA)/.ready
	PYTHONPATH=$(EXTRAS) $(RUN) -m pytest -n 2
	PYTHONPATH=$(CUDA) $(RUN) -m pytest -m slow -k gpus tests/compile_test.py

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: $(READY)
	$(RUN) -m mypy

clean:
	rm -rf $(VENV) $(EXTRAS) $(CUDA) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
