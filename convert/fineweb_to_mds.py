"""Tokenise text into MDS shards. Without flags: FineWeb's 10B-token sample, GPT-2's tokenizer, sequences of 2048."""

import sys

from moe.common.parser import Parser
from moe.data.write.flags import add_convert_arguments, convert_from

if __name__ == "__main__":
    parser = Parser(description=__doc__)
    add_convert_arguments(parser)
    sys.exit(convert_from(parser.parse_args()))
