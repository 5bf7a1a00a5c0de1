# Everything from a fresh clone, with Python 3.11 or newer, pip and make:
#
#   make demo        pretrain, fine-tune, optimise preferences, compare        MODEL=moe_demo for the sparse one
#   make repl        after the demo: is VRPO worth its compute? One seed          SEED=1
#   make test        what has to pass: style, types, layers, tests
#   make test-oldest the tests again, with the oldest torch and lightning that pyproject.toml allows
#   make bench       the benchmarks, ratios side by side
#   make gpu         check and measure everything on one card, in six minutes
#   make notebooks   run the notebooks from top to bottom
#
# The first target that runs makes .venv; a changed pyproject.toml installs again.

PYTHON ?= python3
MODEL ?= demo
SEED ?= 1
BIN := .venv/bin

.PHONY: data demo repl test test-oldest bench gpu notebooks clean
.NOTPARALLEL:

LLADA := $(BIN)/lit-llada
BASE = runs/$(MODEL)/checkpoints/step=0000450.ckpt
REPL = -c configs/recipe/sft_repl.yaml -c configs/data/repl.yaml --data.path data/demonstrations
DRAW = --data data/repl --samples 2 --temperature 1.5 --steps 2 --batch_size 128
PAIRS = -c configs/recipe/vrpo_repl.yaml --model.init_from $(SFT)
ASK = --data data/repl --count threshold --bound 0.95 --batch_size 128
NAIVE = $(foreach option,shared stratified complementary coupled,--model.estimator.$(option) false) --model.estimator.times 1
# What a run of so many steps ends with.
last = runs/$(1)/checkpoints/step=$(shell printf %07d $(2)).ckpt

data: .venv/installed-core
	$(LLADA) prepare chat --corpus repl --size 2000 --out data/demonstrations
	$(LLADA) prepare chat --corpus repl --out data/repl

demo: SFT = $(call last,$(MODEL)_sft,800)
demo: data
	$(LLADA) prepare text --corpus prose --out data/stdlib
	$(LLADA) fit -c configs/recipe/demo.yaml -c configs/data/stdlib.yaml -c configs/model/$(MODEL).yaml --run_dir runs/$(MODEL)
	$(LLADA) fit $(REPL) --model.init_from $(BASE) --trainer.max_steps 800 --run_dir runs/$(MODEL)_sft
	$(LLADA) prepare preference --from $(SFT) $(DRAW) --size 1600 --prompts 2400 --out data/$(MODEL)_pairs
	$(LLADA) fit $(PAIRS) --data.path data/$(MODEL)_pairs --trainer.max_steps 60 --run_dir runs/$(MODEL)_vrpo
	$(LLADA) evaluate $(BASE) --compare $(SFT) $(call last,$(MODEL)_vrpo,60) $(ASK) --per_task 40

repl: SFT = $(call last,sft_$(SEED),2400)
repl: OURS = --data.path data/pairs_$(SEED) --seed_everything $(SEED)
repl: data
	$(LLADA) fit $(REPL) --model.init_from $(BASE) --seed_everything $(SEED) --run_dir runs/sft_$(SEED)
	$(LLADA) prepare preference --from $(SFT) $(DRAW) --size 4000 --prompts 6000 --seed $(SEED) --out data/pairs_$(SEED)
	$(LLADA) fit $(PAIRS) $(OURS) --run_dir runs/vrpo_$(SEED)
	$(LLADA) fit $(PAIRS) $(OURS) $(NAIVE) --run_dir runs/naive_$(SEED)
	$(LLADA) fit $(PAIRS) $(OURS) --model.beta 1e-6 --run_dir runs/chosen_$(SEED)
	$(LLADA) fit $(REPL) --model.init_from $(SFT) --model.lr 5e-4 --model.schedule.warmup_steps 20 --trainer.max_steps 1000 --seed_everything 10$(SEED) --run_dir runs/continued_$(SEED)
	$(LLADA) evaluate $(SFT) --compare $(call last,continued_$(SEED),1000) $(foreach run,naive chosen vrpo,$(call last,$(run)_$(SEED),300)) $(ASK) --per_task 100 --out runs/repl_$(SEED).json

test: export OMP_NUM_THREADS = 1
test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n 2

test-oldest: export OMP_NUM_THREADS = 1
test-oldest: .venv-oldest/installed
	.venv-oldest/bin/pytest -n 2

bench: .venv/installed-core
	@for file in $$(grep -l __main__ benchmarks/*.py); do \
		echo "== $$file"; $(BIN)/python -m benchmarks.$$(basename $$file .py) || exit 1; done

gpu: .venv/installed-dev
	$(BIN)/python -m benchmarks.gpu

# Limits of their own, in seconds: of a cell, and of a notebook instead of pyproject's for a test.
notebooks: export OMP_NUM_THREADS = 1
notebooks: .venv/installed-notebooks
	$(BIN)/pytest --nbmake --nbmake-timeout=1800 -o faulthandler_timeout=3600 notebooks

clean:
	rm -rf .venv .venv-oldest build dist *.egg-info

.venv/bin/python:
	$(PYTHON) -m venv .venv

# "torch>=2.11" in pyproject.toml becomes the constraint torch==2.11, and so do the others that name their oldest.
.venv-oldest/installed: pyproject.toml
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	sed -nE 's/^    "([a-z]+)(\[[a-z]+\])?>=([0-9.]+)".*/\1==\3/p' pyproject.toml > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --quiet -c .venv-oldest/constraints.txt -e '.[dev]'
	@touch $@

.venv/installed-core: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

.venv/installed-%: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet -e '.[$*]'
	@touch $@ .venv/installed-core
