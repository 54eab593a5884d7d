"""Tokenise text into MDS shards. Without flags: FineWeb's 10B-token sample, GPT-2's tokenizer, sequences of 2048."""

from moe.data.write.flags import add_convert_arguments as add_arguments
from moe.data.write.flags import convert_from as run

__all__ = ["add_arguments", "run"]
