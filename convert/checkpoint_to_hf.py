"""Write a checkpoint as a Hugging Face folder, verified by transformers; or with --from-hf make a checkpoint of one."""

import argparse
import sys

from moe.use.export.flags import add_arguments, export_from

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    sys.exit(export_from(parser.parse_args()))
