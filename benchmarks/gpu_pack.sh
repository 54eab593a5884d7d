#!/usr/bin/env bash
# What benchmarks/gpu.py needs on a machine without a network: GPT-2's tokenizer and a few MB of converted text, in
# .bench/gpu_pack (about 10 MB, ignored by git; carry it along).
#
#   benchmarks/gpu_pack.sh [--tokenizer TOKENIZER] [TEXT ...]
#   benchmarks/gpu_pack.sh --wheels [PACKAGE ...]
#
# --wheels: instead the packages of benchmarks/gpu_wheels.txt, and those named (liger-kernel, to be compared with), as
# wheels in .bench/gpu_pack/wheels (10 MB): for a machine without a network that has torch and transformers 5. They are
# for Linux x86-64 and Python 3.12; WHEEL_PYTHON=3.11 asks for another. docs/performance.md has the commands.
# TEXT: files and folders of parquet or jsonl, or a dataset of the hub (default: HuggingFaceFW/fineweb). Of a folder
# with a dataset's README.md only the files of its default config are read; name its files (FOLDER/*/*.parquet) for all.
# The first 4M tokens are taken. With less than 1M a step's batches are soon an epoch: its end shows in every speed.
# TOKENIZER: a folder that holds tokenizer.json, or a name of the hub (default: openai-community/gpt2). It must be
# GPT-2's: with another vocabulary loss and MFU are another model's.
# Where few files come back, pack what was measured: tar czf "$OUT/gpu.tgz" .bench/gpu/results
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "${1:-}" = --wheels ]; then
  shift
  wheels=.bench/gpu_pack/wheels
  rm -rf "$wheels"
  mkdir -p "$wheels"
  platforms=()
  for glibc in 2_{28..5} 2014 2010 1; do
    platforms+=(--platform "manylinux${glibc/#2_/_2_}_x86_64")
  done
  python3 -m pip download -q --no-deps --only-binary=:all: --implementation cp --python-version "${WHEEL_PYTHON:-3.12}" \
    "${platforms[@]}" -c requirements/constraints.txt -r benchmarks/gpu_wheels.txt "$@" -d "$wheels"
  du -sh "$wheels"
  exit
fi
tokenizer=openai-community/gpt2
if [ "${1:-}" = --tokenizer ]; then
  tokenizer=${2:?--tokenizer needs a folder or a name}
  shift 2
fi
[ $# -gt 0 ] || set -- HuggingFaceFW/fineweb
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
pack=.bench/gpu_pack
mkdir -p "$pack/gpt2"
"$python" - "$tokenizer" "$pack/gpt2" <<'PY'
import sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
assert len(tokenizer) == 50257, f"{sys.argv[1]} has {len(tokenizer)} tokens and is not GPT-2's"
tokenizer.save_pretrained(sys.argv[2])
PY
rm -rf "$pack/data"
"$python" convert/fineweb_to_mds.py --dataset "$@" --tokenizer "$pack/gpt2" --seq-len 2048 --val-fraction 0.02 \
  --max-tokens 4000000 --workers 1 --out "$pack/data"
du -sh "$pack"
