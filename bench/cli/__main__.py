"""`python -m bench.cli`: the same as `run_all.py`."""

import sys

from bench.cli import main

if __name__ == "__main__":
    sys.exit(main())
