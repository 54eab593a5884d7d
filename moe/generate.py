"""Text from a checkpoint: loads the weights without Composer and samples token by token.

The whole sequence runs through the model for each token: simple, exact, fast enough for looking at samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from moe.config.schema import ModelConfig
from moe.model import Transformer
from moe.train.checkpoints import find_named, load_state

PREFIX = "transformer."
LOSS_SETTINGS = ("balance_loss", "router_z_loss")


def load_for_inference(path: str) -> tuple[Transformer, dict[str, Any]]:
    """The model of a checkpoint in eval mode, and the configuration it was trained with.

    Raises:
        CheckpointError: no checkpoint there that verifies.
    """
    found = find_named(path)
    config = found.manifest["config"]
    weights = {
        name.removeprefix(PREFIX): value
        for name, value in load_state(found.state_file, mmap=True)["state"]["model"].items()
        if name.startswith(PREFIX)
    }
    settings = {k: v for k, v in config["model"].items() if k in ModelConfig.__dataclass_fields__}
    settings = {k: v for k, v in settings.items() if k not in LOSS_SETTINGS}
    with torch.device("meta"):
        model = Transformer(vocab_size=weights["embed.weight"].shape[0], eos_id=found.manifest["eos_id"], **settings)
    model.load_state_dict(weights, assign=True)
    return model.eval(), config


def generate(
    model: Transformer,
    tokens: list[int],
    *,
    max_new_tokens: int,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 17,
) -> Iterator[int]:
    """Yields new token ids until EOS (not yielded) or `max_new_tokens`. `temperature` 0 is greedy."""
    generator = torch.Generator().manual_seed(seed)
    sequence = list(tokens)
    for _ in range(max_new_tokens):
        with torch.no_grad():
            logits_V = model(torch.tensor([sequence]))[0, -1].float()
        token = int(logits_V.argmax()) if temperature == 0 else _sample(logits_V / temperature, top_p, generator)
        if token == model.eos_id:
            return
        sequence.append(token)
        yield token


def _sample(logits_V: Tensor, top_p: float, generator: torch.Generator) -> int:
    """Draws from the smallest set of tokens whose probability reaches `top_p` (arXiv 1904.09751)."""
    prob, order = logits_V.softmax(-1).sort(descending=True)
    kept = prob.cumsum(-1) - prob < top_p
    return int(order[torch.multinomial(prob * kept, 1, generator=generator)])
