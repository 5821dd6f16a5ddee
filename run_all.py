"""The front door: `python run_all.py [command] [options]`; see bench/cli/."""

import sys

from bench.cli import main

if __name__ == "__main__":
    sys.exit(main())
