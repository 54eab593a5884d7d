"""Write a checkpoint as a Hugging Face folder, verified by transformers; or with --from-hf make a checkpoint of one."""

import sys

from moe.common.parser import Parser
from moe.use.export.flags import add_arguments, export_from

if __name__ == "__main__":
    parser = Parser(description=__doc__)
    add_arguments(parser)
    sys.exit(export_from(parser.parse_args()))
