# make setup   the environment in .venv (PYTHON=python3.12: with that one)
# make demo    text, tokenizer, shards, a small MoE, in minutes
# make test    all tests                     make check   linter, formatter, type checker, links of the docs
# make test-wheel   builds the wheel, installs it in an empty environment elsewhere, and runs its commands there
# make constraints  the versions of make setup, renewed: the newest that fit together; run the suite before they are kept
# make format  fixes what the linter can           make bench-step   a training step against transformers'
# make bench-reader   reading shards against stock Streaming and a plain memmap
# make bench-scale    the start and memory of a run on a trillion tokens, in sparse shards that take no disk
# make test-transformers5   the tests of export under transformers 5, in an environment of its own (.venv5)
# make test-newest   tests/unit on the newest of all packages (.venv-newest; a Python of its own: NEWEST_PYTHON=python3.13)
# make chaos   50 kills, compared with an uninterrupted run; a quarter of an hour
# make bench-checkpoint   how long saving holds up training
# make bench-shards   memory of ranks that share a model of 200M parameters: build, save, load
# make bench-convert-scale   conversion of 100,000 small files, 27,000 footers of a hub, a hub that limits requests
# make soak        50,000 steps of a tiny model in a process of its own: does anything grow; hours (STEPS=2000: fewer)
# make bench-convert   conversion against LLM Foundry's (needs the network once)
# make pictures     the pictures of README and docs/monitoring.md, from two real runs; wants Chromium and `make demo` before
# make bench-learning TEXT=folder   small models, one thing changed at a time; docs/learning.md (no TEXT: the page alone)
# make bench-upcycle TEXT=folder    experts from a dense model against training it further and against experts from scratch;
#                  docs/upcycling.md (no TEXT: the page alone)
# make docs        tries the tutorial's commands with small numbers, then builds the site of docs/ in .site-docs
#                  (mkdocs-material, in an environment of its own: .venv-docs); a broken link is an error
# make tutorial    runs the commands of docs/tutorial.md as they are and writes what they print into the page
# make gpu   verifies, measures and tunes on an NVIDIA GPU, in half an hour (benchmarks/gpu.py); make gpu DRY=1: on the CPU
# make cluster     two machines in namespaces of this one, with a real Slurm, killed and cut (root; apt-get install
#                  slurm-wlm munge); its output goes into docs/cluster.md
# make chaos-convert   conversion killed 20 times, then finished: the same bytes
BIN := .venv/bin
export TOKENIZERS_PARALLELISM = false
export PYTHONDONTWRITEBYTECODE =

.PHONY: setup constraints demo test test-wheel test-transformers5 test-newest check format chaos chaos-convert
.PHONY: docs tutorial try-tutorial gpu pictures bench-step bench-reader bench-scale bench-checkpoint bench-convert bench-learning
.PHONY: bench-convert-scale soak
.PHONY: cluster
.PHONY: bench-upcycle bench-shards

setup: .venv/ready

# a Python that is named, or one that is gone, is looked at though nothing else has changed
ifneq ($(PYTHON)$(if $(wildcard .venv/bin/python),,gone),)
.PHONY: look
look:
.venv/ready: look
endif

.venv/ready: setup.py pyproject.toml requirements/constraints.txt requirements/setup.sh
	@PYTHON='$(PYTHON)' requirements/setup.sh
	@touch $@

constraints: setup
	$(BIN)/python requirements/renew.py

demo: setup
	$(BIN)/moe demo

test: setup
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test-wheel: setup
	requirements/test_wheel.sh

# Streaming asks for transformers below 5 and works above it; the override is for this environment alone.
.venv5/ready: setup.py pyproject.toml | setup
	$(BIN)/uv venv --clear --python $(BIN)/python .venv5
	echo 'transformers>=5' | $(BIN)/uv pip install --python .venv5/bin/python --override - -e '.[dev]'
	@touch $@

test-transformers5: .venv5/ready
	.venv5/bin/python -m pytest tests/unit/use tests/unit/model/test_families.py tests/unit/test_gpu_peers.py
	$(BIN)/python -m pytest tests/unit/use -k transformers_5

# What Composer and Streaming hold back, let go.
NEWEST_PYTHON ?= $(BIN)/python
NEWEST := torch torchvision transformers>=5 datasets>=4 numpy>=2

.venv-newest/ready: setup.py pyproject.toml | setup
	$(BIN)/uv venv --clear --python $(NEWEST_PYTHON) .venv-newest
	printf '%s\n' $(foreach package,$(NEWEST),'$(package)') | \
		$(BIN)/uv pip install --no-config --upgrade --python .venv-newest/bin/python --override - -e '.[dev,convert,eval]'
	@touch $@

test-newest: .venv-newest/ready
	.venv-newest/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder tests/unit

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -p no:xdist tests/unit/test_docs.py -k 'link or named or map'

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-step: .venv5/ready
	$(BIN)/python benchmarks/step.py --write

bench-reader: setup
	$(BIN)/python benchmarks/reader.py --write

bench-scale: setup
	$(BIN)/python benchmarks/scale.py --write

bench-checkpoint: setup
	$(BIN)/python benchmarks/checkpoint.py

bench-shards: setup
	$(BIN)/python benchmarks/sharded_memory.py

chaos: setup
	rm -rf /tmp/moe-chaos
	$(BIN)/python -m tests.chaos.kills --kills 50 --folder /tmp/moe-chaos

bench-convert: setup
	$(BIN)/python benchmarks/convert.py --write

bench-convert-scale: setup
	$(BIN)/python benchmarks/convert_scale.py --write

STEPS ?= 50000
soak: setup
	$(BIN)/python benchmarks/soak.py --steps $(STEPS) --write --detach

.venv-docs/ready: pyproject.toml | setup
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-docs
	$(BIN)/uv pip install --quiet --no-config --python .venv-docs/bin/python --group docs
	@touch $@

docs: .venv-docs/ready try-tutorial
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict
	@echo 'the site is .site-docs/index.html'

tutorial: setup
	$(BIN)/python docs/tutorial.py

try-tutorial: setup
	$(BIN)/python docs/tutorial.py --tiny

pictures: setup
	$(BIN)/python docs/pictures.py

bench-learning: setup
	$(if $(TEXT),$(BIN)/python benchmarks/learning.py --text $(TEXT))
	$(BIN)/python benchmarks/learning.py --report

cluster: setup
	rm -rf /tmp/moe-cluster
	$(BIN)/python -m tests.cluster.run --folder /tmp/moe-cluster --write

bench-upcycle: setup
	$(if $(TEXT),$(BIN)/python benchmarks/upcycle.py --text $(TEXT))
	$(BIN)/python benchmarks/upcycle.py --report

chaos-convert: setup
	$(BIN)/python tests/chaos/convert_kills.py
	$(BIN)/python -m tests.chaos.foreign --seconds 60

gpu: setup
	$(if $(DRY),,test -f .bench/gpu_pack/data/meta.json || benchmarks/gpu_pack.sh)
	$(BIN)/python benchmarks/gpu.py $(if $(DRY),--dry)
