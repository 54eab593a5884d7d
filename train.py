"""Trains, or goes on where the run stopped: composer train.py yamls/500m.yaml [key=value ...]"""

import sys

from moe.run import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
