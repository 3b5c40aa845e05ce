# `make test` and `make demo` need Python >= 3.11 and the package index, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test lint clean

demo: $(VENV)/.runtime
	mkdir -p demo
	$(BIN)/animate-jax animate --reference docs/demo/reference.png \
		--reference-keypoints docs/demo/reference.npz --keypoints docs/demo/motion.npz \
		--retarget bones --steps 5 --guidance 1.5 --out demo/demo.mp4 demo/demo.gif \
		--side-by-side demo/side_by_side.mp4 --overwrite
	@echo "Look at demo/side_by_side.mp4: reference, motion, result; demo.mp4 and demo.gif have the result."

test: $(VENV)/.development
	$(BIN)/python -m pytest -n 2 --dist loadfile tests

lint: $(VENV)/.development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) demo build dist *.egg-info

$(VENV)/.python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python >= 3.11 is needed')"
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.runtime: $(VENV)/.python setup.py constraints.txt
	$(PIP) --editable .
	@touch $@

$(VENV)/.development: $(VENV)/.python setup.py constraints.txt
	$(PIP) torch
	$(PIP) --editable ".[pose,data,dev]"
	@touch $@ $(VENV)/.runtime
