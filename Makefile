# Everything from a fresh clone, with Python 3.11 or newer, pip and make:
#
#   make demo        pretrain, fine-tune, optimise preferences, compare        MODEL=moe_demo for the sparse one
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

BASE = runs/$(MODEL)/checkpoints/step=0000450.ckpt
SFT = runs/$(MODEL)_sft/checkpoints/step=0001000.ckpt
VRPO = runs/$(MODEL)_vrpo/checkpoints/step=0000024.ckpt

demo: .venv/installed-core
	$(BIN)/lit-llada prepare text --corpus prose --out data/stdlib
	$(BIN)/lit-llada fit -c configs/recipe/demo.yaml -c configs/data/stdlib.yaml -c configs/model/$(MODEL).yaml --run_dir runs/$(MODEL)
	$(BIN)/lit-llada prepare chat --corpus repl --out data/repl
	$(BIN)/lit-llada fit -c configs/recipe/sft_repl.yaml -c configs/data/repl.yaml --model.init_from $(BASE) --trainer.max_steps 1000 --run_dir runs/$(MODEL)_sft
	$(BIN)/lit-llada prepare preference --from $(SFT) --data data/repl --size 640 --prompts 960 --out data/$(MODEL)_pairs
	$(BIN)/lit-llada fit -c configs/recipe/vrpo_repl.yaml --data.path data/$(MODEL)_pairs --model.init_from $(SFT) --trainer.max_steps 24 --run_dir runs/$(MODEL)_vrpo
	$(BIN)/lit-llada evaluate $(BASE) --compare $(SFT) $(VRPO) --data data/repl --per_template 40

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
