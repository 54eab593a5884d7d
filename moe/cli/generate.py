"""Continues prompts with a trained checkpoint (a run folder for its newest, or one step-* folder)."""

from __future__ import annotations

import argparse

from moe.common.units import note, show

MOST_NEW = 10_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="run folder or step folder, e.g. checkpoints/demo")
    parser.add_argument("text", nargs="*", help="text to continue; as --prompt")
    parser.add_argument("--step", type=int, default=None, help="of a run folder, the checkpoint of this step")
    parser.add_argument("--prompt", action="append", default=[], help="text to continue; may be given several times")
    parser.add_argument(
        "--tokenizer", default=None, help="folder or hub name of another tokenizer than the checkpoint's own"
    )
    parser.add_argument("--max-new-tokens", type=int, default=100, help="longest continuation (default: 100)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token (default: 0.8)")
    parser.add_argument("--top-p", type=float, default=0.95, help="share of the probability kept (default: 0.95)")
    parser.add_argument("--seed", type=int, default=17, help="of the sampling (default: 17)")


def run(args: argparse.Namespace) -> int:
    from moe.common.errors import InputError
    from moe.data.text.plain_ids import decode_new, encode_prompt
    from moe.model.generation import generate
    from moe.train.checkpointing.trained_tokenizer import checkpoint_tokenizer
    from moe.use.inference import find_checkpoint, load_model

    prompts = [*args.prompt, *args.text]
    if not prompts:
        raise InputError('give a text to continue: moe generate RUN "Once upon a time"')
    if not 0 <= args.seed < 2**63:
        raise InputError(f"--seed ({args.seed:.15g}) must be 0 or more and below 2^63")
    heat = args.temperature
    if not 1 <= args.max_new_tokens <= MOST_NEW:
        raise InputError(f"--max-new-tokens ({args.max_new_tokens:.15g}) must be at least 1 and at most {MOST_NEW:,}")
    if heat != 0 and not 1e-3 <= heat <= 1e3:
        raise InputError(f"--temperature ({heat}) must be 0, or from 0.001 to 1,000")
    if not 0 < args.top_p <= 1:
        raise InputError(f"--top-p ({args.top_p}) must be above 0 and at most 1")
    for prompt in prompts:
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise InputError(f"the prompt {prompt!a} is not valid UTF-8; retype it") from None
    checkpoint = find_checkpoint(args.checkpoint, args.step)
    tokenizer = checkpoint_tokenizer(checkpoint, args.tokenizer, note)
    model, config = load_model(checkpoint), checkpoint.manifest["config"]
    for prompt in prompts:
        tokens = encode_prompt(tokenizer, prompt)
        if len(tokens) + args.max_new_tokens > config["max_seq_len"]:
            note(
                f"warning: {len(tokens)} tokens and {args.max_new_tokens} new ones; the model was trained on "
                f"{config['max_seq_len']}, what lies beyond may be poor"
            )
        show(prompt, end="")
        shown = ""
        new: list[int] = []
        for token in generate(
            model,
            tokens,
            max_new_tokens=args.max_new_tokens,
            temperature=heat,
            top_p=args.top_p,
            seed=args.seed,
        ):
            new.append(token)
            text = decode_new(tokenizer, tokens, new)
            if not text.endswith("\ufffd"):  # part of a character
                show(text[len(shown) :], end="")
                shown = text
        show(decode_new(tokenizer, tokens, new)[len(shown) :] + "\n")
    return 0
