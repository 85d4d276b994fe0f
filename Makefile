# make demo   prune a real 135M model on this machine (twelve to seventeen minutes after installation)
# make test   the tests (make test-all: the slow ones, too; make test-core: the core)
# make test-across   what one stack writes the other reads, and the wheels for a machine without network
# make lint   ruff and import-linter; make types: pyright
# make yamls  writes yamls/prune and yamls/continue by the template of `llmshearing init`
# make gpu    what is claimed of a GPU, measured on this machine's (PARTS="right fast good big": all)
#
# Each builds the environment it needs first. VENV=... says where it lives, WORK=... where the demo works, and
# STACK=current (the default: torch 2.14, transformers 5) or STACK=stock (the pins of the three bases) which versions.
# PROCESSES=2 (the default) share the tests, file by file.

STACK ?= current
VENV ?= $(if $(filter stock,$(STACK)),.venv-stock,.venv)
WORK ?= runs/demo
PYTHON ?= python3
INSTALLED := $(VENV)/.llmshearing-$(STACK)
PIP := $(VENV)/bin/python -m pip install --quiet
PROCESSES ?= 2
TESTS := $(VENV)/bin/python -m pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder
CORE := tests/models tests/masks tests/algorithms tests/checkpoints tests/export tests/rotation tests/compat \
	tests/distributed tests/compatibility tests/test_package.py

STOCK_VENV ?= .venv-stock

.PHONY: demo test test-core test-all test-across gpu yamls lint types clean

$(VENV)/.llmshearing-stock: setup.py constraints/stock.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints/stock.txt --editable '.[demo,dev,eval]'
	touch $@

$(VENV)/.llmshearing-current: setup.py $(wildcard constraints/*.txt)
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints/current.txt --requirement constraints/imports.txt --requirement constraints/tests.txt
	$(PIP) --no-deps --requirement constraints/bases.txt
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $@

demo: $(INSTALLED)
	$(VENV)/bin/llmshearing demo --work $(WORK)

test: $(INSTALLED)
	$(TESTS) -m 'not slow'

test-core: $(INSTALLED)
	$(TESTS) -m 'not slow' $(CORE)

test-all: $(INSTALLED)
	$(TESTS)

test-across: $(INSTALLED)
	$(MAKE) STACK=stock VENV=$(STOCK_VENV) $(STOCK_VENV)/.llmshearing-stock
	OTHER_PYTHON=$(STOCK_VENV)/bin/python $(VENV)/bin/python -m pytest tests/across tests/compatibility/test_wheels.py

gpu: $(INSTALLED)
	$(VENV)/bin/python -m benchmarks.gpu $(PARTS)

yamls: $(INSTALLED)
	PYTHONPATH=. $(VENV)/bin/python yamls/make.py

.venv-lint/.installed: constraints/lint.txt
	$(PYTHON) -m venv .venv-lint
	.venv-lint/bin/python -m pip install --quiet --requirement constraints/lint.txt
	touch $@

lint: .venv-lint/.installed
	.venv-lint/bin/ruff check .
	.venv-lint/bin/ruff format --check .
	PYTHONPATH=. .venv-lint/bin/lint-imports

types: .venv-lint/.installed $(INSTALLED)
	.venv-lint/bin/pyright --pythonpath $(VENV)/bin/python

clean:
	rm -rf $(WORK) build *.egg-info
