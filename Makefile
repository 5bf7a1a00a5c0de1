# Everything from a fresh clone, with Python 3.11 or newer, pip and make:
#
#   make demo        train a small model on real text, watch it denoise       MODEL=moe_demo for the sparse one
#   make test        what has to pass: style, types, layers, tests
#   make bench       the benchmarks, ratios side by side
#   make notebooks   run the notebooks from top to bottom
#
# The first target that runs makes .venv; a changed pyproject.toml installs again.

PYTHON ?= python3
MODEL ?= demo
BIN := .venv/bin

.PHONY: demo test bench notebooks clean
.NOTPARALLEL:

demo: .venv/installed-core
	$(BIN)/lit-llada prepare text --corpus prose --out data/stdlib
	$(BIN)/lit-llada fit -c configs/recipe/demo.yaml -c configs/data/stdlib.yaml -c configs/model/$(MODEL).yaml --run_dir runs/$(MODEL)

test: export OMP_NUM_THREADS = 1
test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n 2

bench: .venv/installed-core
	@for file in $$(grep -l __main__ benchmarks/*.py); do \
		echo "== $$file"; $(BIN)/python -m benchmarks.$$(basename $$file .py) || exit 1; done

notebooks: export OMP_NUM_THREADS = 1
notebooks: .venv/installed-notebooks
	$(BIN)/pytest --nbmake --nbmake-timeout=1800 notebooks

clean:
	rm -rf .venv build dist *.egg-info

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed-core: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

.venv/installed-%: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet -e '.[$*]'
	@touch $@ .venv/installed-core
