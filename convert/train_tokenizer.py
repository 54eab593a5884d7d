"""Train a byte-level BPE tokenizer on the text a conversion would read."""

import sys

from moe.common.parser import Parser
from moe.data.write.flags import add_tokenizer_arguments, train_tokenizer_from

if __name__ == "__main__":
    parser = Parser(description=__doc__)
    add_tokenizer_arguments(parser)
    sys.exit(train_tokenizer_from(parser.parse_args()))
