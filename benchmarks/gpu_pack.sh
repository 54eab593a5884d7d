#!/usr/bin/env bash
# What benchmarks/gpu.py needs on a machine without a network: GPT-2's tokenizer and a few MB of converted text, in
# .bench/gpu_pack (about 10 MB, ignored by git; carry it along).
#
#   benchmarks/gpu_pack.sh [TEXT [TOKENIZER]]
#
# TEXT: a folder of parquet or jsonl files, or a dataset of the hub (default: HuggingFaceFW/fineweb).
# TOKENIZER: a folder that holds tokenizer.json, or a name of the hub (default: openai-community/gpt2). It must be
# GPT-2's: with another vocabulary loss and MFU are another model's.
# Where few files come back, pack what was measured: tar czf "$OUT/gpu.tgz" benchmarks/results/gpu
set -euo pipefail
cd "$(dirname "$0")/.."
text=${1:-HuggingFaceFW/fineweb} tokenizer=${2:-openai-community/gpt2}
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
"$python" convert/fineweb_to_mds.py --dataset "$text" --tokenizer "$pack/gpt2" --seq-len 2048 --val-fraction 0.02 \
  --max-tokens 4000000 --workers 1 --out "$pack/data"
du -sh "$pack"
