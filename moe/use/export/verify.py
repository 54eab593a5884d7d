"""Whether a folder holds this model: every value of every tensor, transformers' ids of texts, and its logits of one
sequence, fp32.

- Tensors are compared by their bits, one after another, as read back from the files. Logits alone would not tell: a
  short sequence misses most rows of the embedding and many experts, and one small value moves no logit by as much.
- Logits tell what bits cannot: that names and settings mean to transformers what they mean here. Rounding grows with
  them, so a difference counts relative to the largest logit: a model whose logits are small is held as strictly.
- Weights stay on disk on both sides until they are used (transformers 4.57 maps safetensors; 5.x gathers the experts of
  a Mixture-of-Experts model in memory). The logits need all of both models at once, mapped.
- A choice between two experts that is closer than rounding may fall differently on the two sides, about once in 10^6
  choices: a sequence that differs is followed by two others. A wrong weight, name or setting fails all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from moe.common.errors import RunFailed
from moe.data.text.plain_ids import encode_plain
from moe.data.text.tokenizer import PROBES
from moe.model import Transformer
from moe.model.families.family import Family
from moe.use.export.hf_weights import Place
from moe.use.export.names import hf_parts, scale_of

TOLERANCE = 1e-4  # of the largest logit
TOKENS = 64
ATTEMPTS = 3


class CannotLoad(RunFailed):
    """transformers makes nothing of the folder at all."""


def verify_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Whether transformers on `folder`, with nothing said to it, makes of texts the ids that training makes of them.

    A special token that is spelt out in a text is left aside: transformers takes it as that token by default, training
    as characters.

    Raises:
        CannotLoad: transformers cannot load it.
        RunFailed: the ids differ.
    """
    from transformers import AutoTokenizer

    try:
        peer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise CannotLoad(f"transformers cannot load the tokenizer of {folder.name} ({error})") from error
    special = [*tokenizer.all_special_tokens]
    texts = [text for text in PROBES if not any(token in text for token in special)]
    for text, ids in zip(texts, encode_plain(tokenizer, texts), strict=True):
        if (theirs := peer(text)["input_ids"]) != ids:
            raise RunFailed(
                f"transformers' tokenizer makes {theirs[:20]} of {text!r}, training {ids[:20]}; nothing was kept"
            )


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have one shape and one dtype and hold the same bits: 0.0 is not -0.0, a NaN is itself."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(*(x.contiguous().flatten().view(torch.uint8) for x in (a, b)))


def verify_tensors(folder: Path, expected: Mapping[str, Tensor]) -> None:
    """Holds the safetensors of `folder` against `expected`, by name; reads one tensor at a time.

    Raises:
        RunFailed: names the tensors that are missing, not expected (or there again), or of other bits.
    """
    _refuse([f"{name}: {error}" for name, error in _errors(folder, dict(expected))])


def verify_import(weights: Mapping[str, Tensor], place: Place, family: Family) -> None:
    """Holds parameters as a checkpoint gives them back against the folder they came from (`place`, see `opened`), of
    which rows may have been cut.

    Raises:
        RunFailed: names the tensors whose values differ.
    """
    errors = []
    for ours, weight in weights.items():
        for name, part in hf_parts(ours, weight, family).items():
            read = place.rows(name, part.shape[0]).float() * scale_of(ours, family)
            if not same_bits(part, read):
                errors.append(f"{name}: its values differ from those in {ours} of the checkpoint")
    _refuse(errors)


def verify_weights(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Holds parameters as a checkpoint gives them back against those that were to be written.

    Raises:
        RunFailed: names the parameters that differ, or that only one of them has.
    """
    names = found.keys() & expected.keys()
    errors = [f"{name}: is missing or was not expected" for name in found.keys() ^ expected.keys()]
    _refuse(errors + [f"{name}: its values differ" for name in names if not same_bits(found[name], expected[name])])


def _refuse(errors: list[str]) -> None:
    if errors:
        more = f"\n  and {len(errors) - 10} more" * (len(errors) > 10)
        listed = "\n".join(f"  {error}" for error in errors[:10])
        raise RunFailed(f"what was written is not what was to be written; nothing was kept:\n{listed}{more}")


def _errors(folder: Path, missing: dict[str, Tensor]) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 - no dict
                    weight = missing.pop(name, None)
                    if weight is None:
                        yield name, f"is not expected in {path.name}"
                    elif not same_bits(file.get_tensor(name), weight.float()):
                        yield name, f"its values in {path.name} differ from the checkpoint's"
        except (SafetensorError, OSError) as error:
            yield path.name, f"cannot be read back ({error})"
    for name in missing:
        yield name, "is missing"


def verify_logits(folder: Path, model: Transformer) -> float:
    """The largest difference of any logit between transformers on `folder` and `model`, relative to the largest logit
    (fp32, on CPU).

    Raises:
        CannotLoad: transformers cannot load the folder, or not compute with it.
        RunFailed: its logits differ by more than TOLERANCE.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        peer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    except Exception as error:
        raise CannotLoad(f"transformers cannot load {folder.name} ({type(error).__name__}: {error})") from error
    vocab_size = model.embed.weight.shape[0]
    seq_len = min(TOKENS, peer.config.max_position_embeddings)
    differences = []
    for seed in range(ATTEMPTS):
        tokens_BS = torch.randint(vocab_size, (1, seq_len), generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            ours = model(tokens_BS)
            try:
                theirs = peer(tokens_BS).logits[..., :vocab_size]  # without the rows that an import has cut
            except Exception as error:
                raise CannotLoad(f"transformers cannot compute with {folder.name} ({error})") from error
        largest = theirs.abs().max().item()
        differences.append((ours - theirs).abs().max().item() / (largest or 1.0))
        if differences[-1] <= TOLERANCE:  # false for nan
            return differences[-1]
    raise RunFailed(
        f"transformers' logits differ from ours by {min(differences):.2g} of the largest logit, more than "
        f"{TOLERANCE:g}; nothing was kept"
    )
