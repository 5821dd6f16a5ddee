"""The command line; each command imports its own libraries.

Exit code 0: every cell finished. 1: some cell failed, the others ran. 2: a wrong command or grid.
"""

from bench.cli.commands import COMMANDS, main, parse

__all__ = ["COMMANDS", "main", "parse"]
