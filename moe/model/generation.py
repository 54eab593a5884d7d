"""Token after token from a model.

- The prompt runs once, then each new token alone, over cached keys and values.
- One prompt at a time with a generator of its own: what a prompt becomes depends neither on the other prompts nor on
  torch's random state, and leaves that as it was.
- Documents are not separated (see Transformer): greedy tokens are those of transformers on the exported model.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from moe.model.attention import KVCache
from moe.model.transformer import Transformer


@torch.no_grad()
def generate(
    model: Transformer,
    tokens: list[int],
    *,
    max_new_tokens: int,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 17,
) -> Iterator[int]:
    """Yields new token ids until EOS (not yielded) or `max_new_tokens`. `temperature` 0 is greedy.

    The model should be in eval mode: dropout would act here too.
    """
    generator = torch.Generator().manual_seed(seed)
    device = model.embed.weight.device
    caches = [KVCache() for _ in model.blocks]
    new = list(tokens)
    for _ in range(max_new_tokens):
        with torch.compiler.set_stance("force_eager"):  # the keys' length changes at every token
            last_N = torch.tensor([len(new) - 1], device=device)
            logits_NV = model(torch.tensor([new], device=device), caches=caches, at_N=last_N)
        logits_V = logits_NV[0].float().cpu()
        token = int(logits_V.argmax()) if temperature == 0 else _sample(logits_V / temperature, top_p, generator)
        if token == model.eos_id:
            return
        new = [token]
        yield token


def _sample(logits_V: Tensor, top_p: float, generator: torch.Generator) -> int:
    """Draws from the smallest set of tokens whose probability reaches `top_p` (arXiv 1904.09751)."""
    prob, order = logits_V.softmax(-1).sort(descending=True)
    kept = prob.cumsum(-1) - prob < top_p
    return int(order[torch.multinomial(prob * kept, 1, generator=generator)])
