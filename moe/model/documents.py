"""Documents packed in one sequence, read from the tokens.

- An EOS belongs to the document it ends: it is the last token that sees that document.
- Positions are not restarted: RoPE is relative, so a mask alone separates the documents.
- Two forms, made once per forward and shared by all layers. On a GPU where the kernel is there: lengths for varlen
  attention, which computes each document alone. Else an additive mask: on CPU a float one costs 5 to 9% over plain
  causal attention, a boolean one 23 to 31%.
- How many documents a batch holds is not known on the GPU without waiting for it, so the list of ends is padded to a
  fixed length with empty documents. The loader's side counts them on the CPU (`document_ends`) and keeps the padding
  short: the kernel starts blocks for the empty ones too. Without its help there is room for S documents in each sample.

B batch, S sequence, M room for documents in a sample.
"""

from typing import NamedTuple

import torch
from torch import Tensor

LEAST_ROOM = 8  # documents per sequence; the room grows by powers of 2, so that few shapes are ever compiled


def document_ids(tokens_BS: Tensor, eos_id: int) -> Tensor:
    """Number of each token's document within its sequence, from 0: int64 [B, S]."""
    is_eos_BS = (tokens_BS == eos_id).long()
    return is_eos_BS.cumsum(-1) - is_eos_BS


def document_causal_mask(documents_BS: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive attention mask [B, 1, S, S]: 0 where a token may look (its own document, not ahead), else -inf."""
    seq_len = documents_BS.shape[-1]
    causal_SS = torch.ones(seq_len, seq_len, dtype=torch.bool, device=documents_BS.device).tril()
    allowed_BSS = (documents_BS[:, :, None] == documents_BS[:, None, :]) & causal_SS
    mask_BSS = torch.zeros(allowed_BSS.shape, dtype=dtype, device=documents_BS.device)
    return mask_BSS.masked_fill_(~allowed_BSS, float("-inf"))[:, None]


class Layout(NamedTuple):
    """Tokens that do not simply follow one another: several continuations behind one context, rows padded in front.

    positions_BS  int64: each token's place in the text it belongs to, below the number of tokens that are there
    allowed_BST   bool: which of the T tokens a token may look at, those of the caches first; at least one for each
    """

    positions_BS: Tensor
    allowed_BST: Tensor

    def mask(self, dtype: torch.dtype) -> Tensor:
        """Additive: [B, 1, S, T]."""
        zeros = torch.zeros(self.allowed_BST.shape, dtype=dtype, device=self.allowed_BST.device)
        return zeros.masked_fill_(~self.allowed_BST, float("-inf"))[:, None]


class Packed(NamedTuple):
    """Documents of a batch as varlen attention takes them: those of all sequences one after another.

    starts_N    int32 [B*M + 1], from 0: where each document begins in the batch's B*S tokens, then B*S. A document as
                long as nothing is padding.
    longest     no document has more tokens
    """

    starts_N: Tensor
    longest: int


def document_ends(tokens_BS: Tensor, eos_id: int, room: int | None = None) -> Tensor:
    """Position after the last token of each document in its sequence: int32 [B, M], padded with S.

    room: M, at least the number of documents in any sequence. None counts them, which waits for a GPU, and leaves room
    to the next power of 2.
    """
    seq_len = tokens_BS.shape[1]
    is_last_BS = tokens_BS == eos_id
    is_last_BS[:, -1] = True
    number_BS = is_last_BS.cumsum(-1, dtype=torch.int32)
    if room is None:
        most = int(number_BS[:, -1].max())
        room = min(seq_len, max(LEAST_ROOM, 1 << (most - 1).bit_length()))
    wanted_M = torch.arange(1, room + 1, dtype=torch.int32, device=tokens_BS.device)
    wanted_BM = wanted_M.expand(tokens_BS.shape[0], room).contiguous()
    # Where the count first reaches m the m-th document has its last token.
    return torch.searchsorted(number_BS, wanted_BM, out_int32=True).add_(1).clamp_(max=seq_len)


def pack(ends_BM: Tensor, seq_len: int) -> Packed:
    """The documents of `document_ends` on the batch's own device, without waiting for it."""
    offset_B = torch.arange(ends_BM.shape[0], dtype=torch.int32, device=ends_BM.device) * seq_len
    starts_N = torch.nn.functional.pad((ends_BM + offset_B[:, None]).flatten(), (1, 0))
    return Packed(starts_N, seq_len)
