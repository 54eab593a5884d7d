"""Trains, or resumes where the run stopped: composer train.py yamls/500m.yaml [key=value ...]"""

import sys

from moe.cli.train import main
from moe.train.run import end

if __name__ == "__main__":
    end(main(sys.argv[1:]))
