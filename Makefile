# `make run` and `make test` do all their set-up themselves: a virtual environment with the pinned packages.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
# Tests start Python often, and it starts three times as fast where it has kept what it compiled.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test check gpu setup clean

run: setup
	$(VENV)/bin/lt-lightning run $(ARGS)

test: setup
	$(VENV)/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=40 --durations-min=2 $(ARGS)

check: setup
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

# On a machine with a GPU, whose Python has PyTorch: `make gpu ARGS="--seconds 540"` for 9 minutes of it.
gpu:
	$(PYTHON) -m benchmarks.gpu $(ARGS)

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV)
