# make setup   the environment in .venv            make demo    text, tokenizer, shards, a small MoE, in minutes
# make test    the whole suite                     make check   linter, formatter, type checker
# make format  mends what the linter can           make bench   a training step against transformers'
PYTHON ?= python3
BIN := .venv/bin
export TOKENIZERS_PARALLELISM = false
export PYTHONDONTWRITEBYTECODE =

.PHONY: setup demo test check format bench

setup: .venv/ready

.venv/ready: setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || \
		{ echo "error: $$($(PYTHON) --version) is not Python 3.10 to 3.12; run: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip install --python $(BIN)/python -e '.[dev,convert]'
	@touch $@

demo: setup
	$(BIN)/moe demo

test: setup
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python benchmarks/step.py
