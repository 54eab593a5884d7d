"""Whether transformers makes the same of a folder as this model does: ids of texts, and logits of one sequence, fp32.

- Weights stay on disk on both sides until they are used (transformers 4.57 maps safetensors; 5.x gathers the experts of
  a Mixture-of-Experts model in memory).
- A choice between two experts that is closer than rounding may fall differently on the two sides, about once in 10^6
  choices: a sequence that differs is followed by two others. A wrong weight, name or setting fails all of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from moe.data.text.tokenizer import PROBES, encode_plain
from moe.errors import RunFailed
from moe.model import Transformer

TOLERANCE = 1e-4
TOKENS = 64
ATTEMPTS = 3


class CannotLoad(RunFailed):
    """transformers makes nothing of the folder at all."""


def prove_tokenizer(folder: Path, tokenizer: Any) -> None:
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


def prove(folder: Path, model: Transformer) -> float:
    """The largest difference of any logit between transformers on `folder` and `model` (fp32, on CPU).

    Raises:
        CannotLoad: transformers cannot load the folder, or not compute with it.
        RunFailed: its logits differ by more than 1e-4.
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
        differences.append((ours - theirs).abs().max().item())
        if differences[-1] <= TOLERANCE:  # false for nan
            return differences[-1]
    raise RunFailed(
        f"transformers' logits differ from ours by {min(differences):.3g}, more than {TOLERANCE}; nothing was kept"
    )
