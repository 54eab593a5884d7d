"""Train a byte-level BPE tokenizer on the text a conversion would read."""

from moe.data.write.flags import add_tokenizer_arguments as add_arguments
from moe.data.write.flags import train_tokenizer_from as run

__all__ = ["add_arguments", "run"]
