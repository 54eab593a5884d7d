"""Flags of convert/checkpoint_to_hf.py, and its exit codes: 0 done, 1 the verification failed, 2 invalid input or a
full disk, 130 Ctrl+C.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "checkpoint", nargs="?", help="run folder (its newest checkpoint) or step folder, e.g. checkpoints/moe-500m-10b"
    )
    add("--step", type=int, default=None, help="of a run folder, the checkpoint of this step")
    add("--tokenizer", default=None, help="folder or hub name of another tokenizer than the checkpoint's own")
    add("--from-hf", metavar="FOLDER", help="the other way: a Hugging Face folder or hub name becomes a checkpoint")
    add("--upcycle", metavar="RECIPE", help="with --from-hf, of a dense model: copies=8,pieces=4[,active=1,shared=0]")
    add("--out", required=True, help="the folder to write; with --from-hf a run folder for load_path")
    add("--overwrite", action="store_true", help="replace what is in --out")


def export_from(args: argparse.Namespace) -> int:
    from moe.common.environment import settle
    from moe.common.errors import InputError, RunFailed
    from moe.common.paths import expanded, local_path
    from moe.common.units import note, ready, say

    ready()
    try:
        settle()
        if args.checkpoint is None and args.from_hf is None:
            raise InputError("give a checkpoint to export, or --from-hf and what to import")
        if args.checkpoint is not None and args.from_hf is not None:
            raise InputError(
                f"give a checkpoint to export, or --from-hf, not both ({args.checkpoint} and {args.from_hf})"
            )
        if args.from_hf is not None and args.step is not None:
            raise InputError(f"--step ({args.step}) chooses a checkpoint to export; --from-hf has none, leave it out")
        if args.from_hf is not None and args.tokenizer is not None:
            raise InputError(f"--tokenizer ({args.tokenizer}) is for an export; --from-hf brings its own, leave it out")
        if args.upcycle is not None and args.from_hf is None:
            raise InputError(f"--upcycle ({args.upcycle}) is of a dense model that --from-hf names; give that too")
        out = local_path(args.out, "--out")
        if args.from_hf is None:
            from moe.use.export.to_hf import export

            export(
                str(local_path(args.checkpoint, "the checkpoint")),
                step=args.step,
                tokenizer_name=args.tokenizer,
                out=out,
                overwrite=args.overwrite,
                say=say,
            )
        else:
            from moe.use.export.from_hf import import_folder
            from moe.use.export.upcycle import parse_recipe

            recipe = None if args.upcycle is None else parse_recipe(args.upcycle)
            import_folder(
                expanded(args.from_hf, "--from-hf"), out=out, recipe=recipe, overwrite=args.overwrite, say=say
            )
    except (InputError, RunFailed) as error:
        note(f"error: {error}")
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        return 130
    return 0
