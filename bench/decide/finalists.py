"""Which rows are confirmed: chosen from the screening seeds alone, by a rule fixed beforehand."""

import statistics

import numpy as np

from bench.decide.best_bet import row_variances, table
from bench.decide.evidence import LONGER, METHOD, Pair, Row


def choose_finalists(pair: Pair, count: int, max_cost: float | None = None) -> tuple[str, ...]:
    """The rows to confirm: one student trained longer and the best methods of the screening.

    Of the students trained longer, the one with the highest screening mean takes part, whatever
    the methods reach; of those within one standard error of it, the most expensive one, which
    longer training seldom harms. The other places go to the methods of the highest screening
    means. With no more rows than places, all are finalists. Controls, rows that were not screened
    and rows above `max_cost`, or of unknown cost, are left out.

    Source:
        One standard error: Breiman, Friedman, Olshen, Stone: Classification and Regression Trees,
        1984, section 3.4.3. A longer student costs no more seeds than a shorter one.
    """
    open_to = [row for row in pair.rows if row.nameable and not too_dear(row, max_cost)]
    if len(open_to) > count:
        open_to = [row for row in open_to if row.screening]
        longer = _longer(pair, [row for row in open_to if row.kind == LONGER])
        methods = [row for row in open_to if row.kind == METHOD]
        methods.sort(key=screening_mean, reverse=True)  # stable: equals stay in the grid's order
        open_to = [*longer, *methods[: count - len(longer)]]
    chosen = {row.name for row in open_to}
    return tuple(row.name for row in pair.rows if row.name in chosen)


def too_dear(row: Row, max_cost: float | None) -> str:
    """How a row exceeds the limit on cost; empty if it does not."""
    if max_cost is None or (row.cost is not None and row.cost <= max_cost):
        return ""
    return "cost not measured" if row.cost is None else f"cost ×{row.cost:.2f} above ×{max_cost:g}"


def screening_mean(row: Row) -> float:
    """Mean accuracy over the screening seeds."""
    return statistics.fmean(row.screening.values())


def _longer(pair: Pair, rows: list[Row]) -> list[Row]:
    """The student trained longer that takes part; none if there is none."""
    if not rows:
        return []
    best = max(rows, key=screening_mean)
    screened = table([row.screening for row in pair.rows])
    pooled = float(np.mean(row_variances(screened))) if screened.shape[1] > 1 else 0.0
    error = (2 * pooled / len(best.screening)) ** 0.5
    close = [row for row in rows if screening_mean(row) >= screening_mean(best) - error]
    return [max(close, key=lambda row: (row.cost or 0.0, screening_mean(row)))]
