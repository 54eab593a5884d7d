"""Tokenise text into MDS shards.

Without flags: FineWeb's 10B-token sample with GPT-2's tokenizer, 2048 tokens a sample.
"""

import argparse
import sys

from moe.data.flags import add_arguments, main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add_arguments(parser)
    sys.exit(main(parser.parse_args()))
