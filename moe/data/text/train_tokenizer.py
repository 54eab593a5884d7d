"""A byte-level BPE from the same sources a conversion reads, with `<|endoftext|>` as EOS and GPT-2's way of splitting
words.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from moe.common.errors import InputError
from moe.common.ownership import begin, finish, refuse_unless_own, remove_own, replaceable_place
from moe.common.paths import local_path, refuse_unwritable
from moe.common.signals import ended_by_signals
from moe.common.units import tell
from moe.data.text.errors import BadFileError
from moe.data.text.files import Source
from moe.data.text.planning import plan_units
from moe.data.text.reading import read_batches
from moe.data.text.rows import Skipped, clean
from moe.data.text.selection import left_out_lines
from moe.data.text.sources import resolve
from moe.data.text.tokenizer import save_files

EOS = "<|endoftext|>"
KIND = "tokenizer"
LEAST_VOCAB = 257  # all bytes and EOS
MOST_VOCAB = 1 << 24  # the trainer takes memory for all of them at once


def text_batches(source: Source, text_column: str, max_bytes: int, skipped: Skipped) -> Iterator[list[str]]:
    """Texts from the front of the dataset until `max_bytes` of them; `skipped` gets the rows without text.

    Raises BadFileError for a file that cannot be read.
    """
    units, bad = plan_units(source.files, text_column)
    if bad:
        raise bad[0]
    size = 0
    for unit in units:
        for batch in read_batches(unit, text_column, id_column=None, separator=EOS):
            texts = clean(batch, file=unit.file.name, skipped=skipped)[0].to_pylist()
            size += sum(map(len, texts))
            yield texts
            if size >= max_bytes:
                return


def train_tokenizer(
    *,
    dataset: str | tuple[str, ...],
    out: str | Path,
    vocab_size: int,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    text_column: str = "text",
    max_bytes: int = 1 << 30,
    overwrite: bool = False,
) -> Path:
    """Train on the first `max_bytes` characters and write a folder that transformers' AutoTokenizer loads. Returns it.

    `vocab_size` counts the 256 bytes and EOS; a small text may give fewer. `overwrite` replaces a folder that carries
    our mark and holds nothing else. Raises InputError for a folder in use, no text, or a vocabulary that cannot be.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    out = local_path(out, "--out")
    place = replaceable_place(out, "--out")
    if not LEAST_VOCAB <= vocab_size <= MOST_VOCAB:
        raise InputError(
            f"--vocab-size {vocab_size}: must be at least {LEAST_VOCAB} (all bytes and {EOS}) "
            f"and at most {MOST_VOCAB:,}"
        )
    if max_bytes < 1:
        raise InputError(f"--max-bytes {max_bytes}: must be at least 1")
    _refuse_what_is_there(place, overwrite)
    refuse_unwritable(place.parent, f"--out {out}")
    names = (dataset,) if isinstance(dataset, str) else dataset
    source = resolve(
        dataset=names,
        config=config,
        split=split,
        revision=revision,
        outputs=(out, out.with_name(out.name + ".partial")),
    )
    for line in [*left_out_lines(source.left_out), *source.notes]:
        tell(line)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[EOS],
        show_progress=sys.stderr.isatty(),  # elsewhere it is three empty lines
    )
    skipped = Skipped()
    try:
        with ended_by_signals("stopped; nothing of the tokenizer is kept, the same command starts again"):
            tokenizer.train_from_iterator(text_batches(source, text_column, max_bytes, skipped), trainer)
    except BadFileError as error:
        raise InputError(f"a file cannot be used: {error}") from error
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, clean_up_tokenization_spaces=False)
    place.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))  # new: nobody else's
    begin(scratch, KIND)
    made, old = scratch / "made", scratch / "replaced"
    try:
        save_files(wrapped, made)
        finish(made, KIND)
        _refuse_what_is_there(place, overwrite)  # once more: the work took long
        if place.exists():
            place.rename(old)
        made.rename(place)
    finally:
        if old.exists() and not place.exists():
            old.rename(place)
        remove_own(scratch, KIND, "--out")
    if skipped.counts:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(skipped.counts.items()))
        tell(f"skipped rows {sum(skipped.counts.values()):,} ({reasons})")
    tell(f"tokenizer: {wrapped.vocab_size:,} tokens in {out}")
    if wrapped.vocab_size < vocab_size:
        tell(f"fewer than --vocab-size {vocab_size:,}: the text is too small for more")
    return out


def _refuse_what_is_there(out: Path, overwrite: bool) -> None:
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise InputError(f"--out {out}: is a file; a folder is needed")
    if any(out.iterdir()):
        if not overwrite:
            raise InputError(f"--out {out}: not empty; choose another folder, or --overwrite")
        refuse_unless_own(out, KIND, "--out")
