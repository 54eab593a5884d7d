#!/usr/bin/env bash
# Builds the wheel, installs it in an empty environment outside of the repository, and goes from text to an exported model
# with the commands it brings: `make test-wheel`. What it needs of the disk (6 GB) is freed at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
REPOSITORY=$PWD UV=$PWD/.venv/bin/uv PLACE=$(mktemp -d)
trap 'rm -rf "$PLACE"' EXIT
unset PYTHONPATH
"$UV" build --quiet --out-dir "$PLACE/dist" . # the wheel is made of the source distribution, which has to be whole too
"$UV" venv --quiet --python "$REPOSITORY/.venv/bin/python" "$PLACE/venv"
"$UV" pip install --quiet --no-config --python "$PLACE/venv/bin/python" "$PLACE"/dist/*.whl
export PATH="$PLACE/venv/bin:$PATH"
mkdir "$PLACE/work" && cd "$PLACE/work"

moe --version
mkdir texts && cp "$REPOSITORY"/docs/*.md texts && for page in texts/*.md; do mv "$page" "${page%.md}.txt"; done
moe tokenizer --dataset texts --vocab-size 512
moe convert --dataset texts --tokenizer ./data/tokenizer --seq-len 64 --val-fraction 0.1 --out data/own
moe yaml own_text
moe train own_text.yaml max_seq_len=64 max_duration=10ba scheduler.t_warmup=2ba model.d_model=32 model.expert_hidden=32 \
  model.n_layers=2 model.n_heads=2 model.n_kv_heads=1
moe export checkpoints/own-text --out hf
moe generate checkpoints/own-text "The" --max-new-tokens 5
moe runs
moe demo
echo "the wheel is whole"
