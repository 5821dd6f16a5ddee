"""Which rows are confirmed: chosen from the screening seeds alone, by a rule fixed beforehand."""

from statistics import fmean

import numpy as np

from bench.decide.best_bet import row_variances, table
from bench.decide.evidence import LONGER, METHOD, Pair


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
    open_to = [row for row in pair.rows if row.nameable and not row.too_dear(max_cost)]
    if len(open_to) > count:
        # Rounded, so that equal means are equal whatever they are summed from.
        screened = (row for row in open_to if row.screening)
        mean = {row.name: round(fmean(row.screening.values()), 12) for row in screened}
        longer = [row for row in open_to if row.name in mean and row.kind == LONGER]
        if longer:
            best = max(longer, key=lambda row: mean[row.name])
            seen = table([row.screening for row in pair.rows])
            pooled = float(np.mean(row_variances(seen))) if seen.shape[1] > 1 else 0.0
            least = mean[best.name] - (2 * pooled / len(best.screening)) ** 0.5
            close = [row for row in longer if mean[row.name] >= least]
            longer = [max(close, key=lambda row: (row.cost or 0.0, mean[row.name]))]
        methods = [row for row in open_to if row.name in mean and row.kind == METHOD]
        methods.sort(key=lambda row: mean[row.name], reverse=True)  # equals in the grid's order
        open_to = [*longer, *methods[: count - len(longer)]]
    chosen = {row.name for row in open_to}
    return tuple(row.name for row in pair.rows if row.name in chosen)
