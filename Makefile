# make demo   prune a real 135M model on this machine (about twelve minutes after installation)
# make test   the tests (make test-all: the slow ones, too; make lint: ruff)
#
# Both build the environment they need first. VENV=... says where it lives, WORK=... where the demo works.

VENV ?= .venv
WORK ?= runs/demo
PYTHON ?= python3
INSTALLED := $(VENV)/.llmshearing-installed

.PHONY: demo test test-all lint clean

$(INSTALLED): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,dev,eval]'
	touch $(INSTALLED)

demo: $(INSTALLED)
	$(VENV)/bin/llmshearing demo --work $(WORK)

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest -m 'not slow'

test-all: $(INSTALLED)
	$(VENV)/bin/python -m pytest

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .

clean:
	rm -rf $(WORK) build *.egg-info
