"""The command line. The only package that knows all the others; each command imports its own.

Exit code 0: every cell finished. 1: some cell failed, the others ran. 2: a wrong command or grid,
one line that says what came, what was wanted and the cure.
"""

from bench.cli.commands import COMMANDS, main, parse

__all__ = ["COMMANDS", "main", "parse"]
