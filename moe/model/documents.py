"""Documents packed in one sample, read from the tokens.

- An EOS belongs to the document it ends: it is the last token that sees that document.
- Positions are not restarted: RoPE is relative, so a mask alone separates the documents.
- One additive mask per forward, shared by all layers: on CPU an additive float mask costs 5 to 9% over plain causal
  attention, a boolean one 23 to 31%.

B batch, S sequence.
"""

import torch
from torch import Tensor


def document_ids(tokens_BS: Tensor, eos_id: int) -> Tensor:
    """Number of each token's document within its sample, from 0: int64 [B, S]."""
    is_eos_BS = (tokens_BS == eos_id).long()
    return is_eos_BS.cumsum(-1) - is_eos_BS


def document_causal_mask(documents_BS: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive attention mask [B, 1, S, S]: 0 where a token may look (its own document, not ahead), else -inf."""
    seq_len = documents_BS.shape[-1]
    causal_SS = torch.ones(seq_len, seq_len, dtype=torch.bool, device=documents_BS.device).tril()
    allowed_BSS = (documents_BS[:, :, None] == documents_BS[:, None, :]) & causal_SS
    mask_BSS = torch.zeros(allowed_BSS.shape, dtype=dtype, device=documents_BS.device)
    return mask_BSS.masked_fill_(~allowed_BSS, float("-inf"))[:, None]
