"""What `recommend` says: of a grid that was trained here, or of a CSV file from anywhere."""

import argparse
import math
from collections.abc import Sequence
from typing import Any

from bench.cli.recorded import fetch_costs, fetch_results, grid_name
from bench.decide.decision import Answer, Decision, Question, decide
from bench.decide.evidence import Pair
from bench.evidence import beyond_memory, decide_plan, group_by_pair, read_csv
from bench.faults import UserError
from bench.report.answers import Asked, answer_lines, asked_of, overall_lines
from bench.workdir import WorkDir


def recommend_grid(options: argparse.Namespace) -> list[str]:
    """The answers for a grid, from its records and costs.

    Raises:
        UserError: an option is wrong, or the evidence answers for no pair.
    """
    limits = _limits(options)
    work, name = WorkDir(options.work_dir), grid_name(options.grid)
    plan, records = fetch_results(work, name, options.origin)
    costs = fetch_costs(work, name, options.origin)
    if options.max_memory_mib is not None:
        limits["excluded"] = beyond_memory(group_by_pair(plan), costs, options.max_memory_mib)
    pairs, found = decide_plan(plan, records, costs, **limits)
    if not pairs:
        raise UserError(f"grid {name}: no plain student has finished, and gains are over it")
    names = [f"{pair.teacher}:{pair.student}" for pair in pairs]
    return _lines(options, list(pairs.values()), names, found, asked_of(plan))


def recommend_csv(options: argparse.Namespace) -> list[str]:
    """The answers for a CSV file.

    Raises:
        UserError: the file or an option is wrong, or the evidence answers for no pair.
    """
    if options.max_memory_mib is not None:
        raise UserError("--max-memory-mib: a CSV file says nothing of memory; leave it out")
    limits = _limits(options)
    pairs = read_csv(options.csv, options.baseline)
    equal = not any(row.screening for pair in pairs for row in pair.rows)
    found = decide(pairs, Question(equal_seeds=equal, **limits))
    return _lines(options, pairs, [pair.name for pair in pairs], found, Asked())


def _limits(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of `Question` that the command line sets."""
    if options.max_cost is not None and not options.max_cost >= 1:
        raise UserError(
            f"max cost: got {options.max_cost:g}, wanted 1 or more: the plain student costs 1"
        )
    if options.max_memory_mib is not None and not options.max_memory_mib >= 0:
        raise UserError(f"max memory: got {options.max_memory_mib:g} MiB, wanted 0 or more")
    if options.min_gain is not None and not 0 <= options.min_gain < 1:
        raise UserError(
            f"min gain: got {options.min_gain:g}, wanted an accuracy in [0, 1): 0.01 is one "
            "percentage point"
        )
    return {
        "against": options.against,
        "max_cost": options.max_cost,
        "least_gain": options.min_gain or 0.0,
    }


def _lines(
    options: argparse.Namespace,
    pairs: Sequence[Pair],
    names: Sequence[str],
    found: Decision,
    asked: Asked,
) -> list[str]:
    only = options.pair
    if only is not None and only not in names:
        known = ", ".join(dict.fromkeys(names))
        raise UserError(f"--pair: no pair {only!r}; it has: {known}")
    shown = [
        (pair, answer)
        for pair, name, answer in zip(pairs, names, found.answers, strict=True)
        if only in (None, name)
    ]
    if not any(answer.named for _, answer in shown):
        problems = dict.fromkeys(f"{pair.name}: {answer.problem}" for pair, answer in shown)
        raise UserError(f"no answer: {'; '.join(problems)}{_nearest(options, shown)}")
    lines = [] if only else overall_lines(found.overall)
    return [*lines, *(line for p, a in shown for line in answer_lines(a, p, asked))]


def _nearest(options: argparse.Namespace, shown: Sequence[tuple[Pair, Answer]]) -> str:
    """The limit on cost that would allow a finalist, as the option to give; empty without one."""
    costs = [row.cost for pair, _ in shown for row in pair.finalists if row.cost is not None]
    if options.max_cost is None or not costs:
        return ""
    return f"; the least limit that allows one: --max-cost {math.ceil(100 * min(costs)) / 100:g}"
