"""What `bench.decide` works on, from the records of a grid or from a CSV file."""

from bench.evidence.csv_file import read_csv
from bench.evidence.records import (
    beyond_memory,
    decide_plan,
    group_by_pair,
    numbers_of_cells,
    pairs_of,
    question_of,
)

__all__ = [
    "beyond_memory",
    "decide_plan",
    "group_by_pair",
    "numbers_of_cells",
    "pairs_of",
    "question_of",
    "read_csv",
]
