"""How good each row probably is, all its seeds and the other rows' considered."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

PRIOR_DEVIATION = 0.05  # scale of the prior of tau: methods' true gains differ by a few points
TAUS = PRIOR_DEVIATION * np.geomspace(0.004, 4, 24)  # in equal steps of log tau
PRIOR_FREEDOM = 4.0  # what the pooled variance weighs, in degrees of freedom
LEAST_VARIANCE = 1e-10
DRAWS, DRAW_SEED = 40_000, 20261  # Monte-Carlo draws behind P(best), and their fixed seed
RACE = 0.95  # what P(best) of the rows still in the race sums to, at least


class Chance(NamedTuple):
    """What is believed of one row after all its seeds.

    `gain` is the posterior mean of its true gain over the reference, in accuracy; `better` and
    `best` are probabilities to be better than the reference, and the best of all with it.
    """

    row: str
    gain: float
    better: float
    best: float


class Posterior(NamedTuple):
    """Gains over the reference: probability of each tau (T,), and a normal distribution for it."""

    weights: np.ndarray
    means: np.ndarray  # (T, R)
    covariances: np.ndarray  # (T, R, R)

    def best(self, competing: np.ndarray, draws: int = DRAWS) -> np.ndarray:
        """P(best) of the reference and each competing row, (1 + R,), by Monte Carlo."""
        generator = np.random.default_rng(DRAW_SEED)
        counts = generator.multinomial(draws, self.weights)
        roots = np.linalg.cholesky(self.covariances)
        gains = np.concatenate([
            mean + generator.standard_normal((count, len(mean))) @ root.T
            for mean, root, count in zip(self.means, roots, counts, strict=True)
        ])  # fmt: skip
        gains[:, ~competing] = -np.inf
        winners = np.where(gains.max(axis=1) > 0, 1 + gains.argmax(axis=1), 0)
        return np.bincount(winners, minlength=1 + gains.shape[1]) / draws


def table(rows: Sequence[Mapping[int, float]]) -> np.ndarray:
    """Accuracies as (rows, seeds), nan where a row has no such seed."""
    seeds = sorted({seed for row in rows for seed in row})
    return np.array([[row.get(seed, np.nan) for seed in seeds] for row in rows])


def row_variances(accuracies: np.ndarray) -> np.ndarray:
    """Variance of each row of (R, S), the seeds' effects taken out, shrunken to the pooled one.

    v_r = (d0 v + d_r s_r^2) / (d0 + d_r), (R,), above 0: s_r^2 from the row's residuals of the
    least-squares fit row + seed on d_r degrees of freedom, v from all rows', d0 = `PRIOR_FREEDOM`.

    Source:
        Smyth: Linear Models and Empirical Bayes Methods for Assessing Differential Expression,
        Stat. Appl. Genet. Mol. Biol. 3, 2004, for the form; d0 is fixed here, not estimated.
    """
    seen = np.isfinite(accuracies)
    values = np.where(seen, accuracies, 0.0)
    counts, per_seed = seen.sum(axis=1), np.maximum(seen.sum(axis=0), 1)
    # Normal equations without the seeds' effects; they leave the rows' up to a constant.
    normal = np.diag(counts.astype(float)) - (seen / per_seed) @ seen.T
    right = values.sum(axis=1) - seen @ (values.sum(axis=0) / per_seed)
    effects = np.linalg.lstsq(normal, right)[0]
    shared = (values - effects[:, None] * seen).sum(axis=0) / per_seed
    squares = (np.where(seen, values - effects[:, None] - shared, 0.0) ** 2).sum(axis=1)
    kept = (seen * (1 - 1 / per_seed)).sum(axis=1) / np.maximum(counts, 1)
    freedom = np.maximum(counts - 1, 0) * kept  # a row's part in the seeds' effects costs it some
    pooled = max(squares.sum() / max(freedom.sum(), 1e-9), LEAST_VARIANCE)
    return (PRIOR_FREEDOM * pooled + squares) / (PRIOR_FREEDOM + freedom)


def posterior(accuracies: np.ndarray, methods: np.ndarray) -> Posterior:
    """Posterior of the rows' true gains over the reference.

    Row r at seed s: y_rs = m_s + g_r + e_rs, e_rs ~ N(0, v_r), with g of the reference 0 and m_s,
    its true accuracy at that seed, flat. Gains of methods: g_r ~ N(mu, tau^2), mu flat, tau
    half-normal with scale `PRIOR_DEVIATION`. Gains of other rows, students trained longer among
    them, are flat: a method's mean is no prior for what needs no teacher.

    Args:
        accuracies: (1 + R, S), the reference's first, nan where a row was not trained.
        methods: (R,), whose gains share the prior.

    Source:
        Gelman et al.: Bayesian Data Analysis, 3rd ed., 2013, section 5.4, for the model; Gelman,
        Bayesian Analysis 1, 2006, for the prior of tau; v_r is plugged in, see `row_variances`.
    """
    seen = np.isfinite(accuracies)
    used = seen.sum(axis=0) > 1  # a seed of one row alone says nothing about a difference
    precision = (seen / row_variances(accuracies)[:, None])[:, used]
    values = np.where(seen, accuracies, 0.0)[:, used]
    total = precision.sum(axis=0)
    centre = (precision * values).sum(axis=0) / total
    information = np.diag(precision.sum(axis=1)) - (precision / total) @ precision.T
    evidence = (precision * (values - centre)).sum(axis=1)
    members, count = methods.astype(float), methods.sum()
    about_mean = np.diag(members) - np.outer(members, members) / max(count, 1)
    precisions = information[1:, 1:] + about_mean / TAUS[:, None, None] ** 2
    covariances = np.linalg.inv(precisions)
    means = covariances @ evidence[1:]
    # Prior of tau, times tau since its steps are equal in log tau; then the marginal likelihood,
    # with mu integrated out.
    log_weights = (
        -0.5 * (TAUS / PRIOR_DEVIATION) ** 2
        + (1 - max(count - 1, 0)) * np.log(TAUS)
        - 0.5 * np.linalg.slogdet(precisions)[1]
        + 0.5 * means @ evidence[1:]
    )
    weights = np.exp(log_weights - log_weights.max())
    return Posterior(weights / weights.sum(), means, covariances)


def chances(
    rows: Mapping[str, Mapping[int, float]],
    methods: Collection[str],
    competing: Collection[str],
    draws: int = DRAWS,
) -> tuple[Chance, ...]:
    """What is believed of the reference and each competing row, by falling gain.

    `rows` maps names to accuracy by seed, the reference first; rows without a seed in common with
    it are left out. `methods` share a prior. `competing` rows may be the best; all help to fit.
    """
    reference, *others = rows
    shared = [name for name in others if rows[name].keys() & rows[reference].keys()]
    if not shared:
        return (Chance(reference, 0.0, 0.0, 1.0),)
    names = [reference, *shared]
    found = posterior(
        table([rows[name] for name in names]), np.array([name in methods for name in shared])
    )
    deviations = np.sqrt(np.diagonal(found.covariances, axis1=1, axis2=2))
    better = found.weights @ special.ndtr(found.means / deviations)  # P(gain > 0)
    best = found.best(np.array([name in competing for name in shared]), draws)
    gains = found.weights @ found.means
    numbers = np.stack([[0.0, *gains], [0.0, *better], best], axis=1).tolist()
    believed = [
        Chance(name, *three)
        for name, three in zip(names, numbers, strict=True)
        if name == reference or name in competing
    ]
    return tuple(sorted(believed, key=lambda chance: -chance.gain))


def still_in_the_race(found: Sequence[Chance]) -> tuple[str, ...]:
    """The fewest rows whose P(best) sums to `RACE`, by falling P(best)."""
    order = sorted(found, key=lambda chance: -chance.best)
    short = sum(total < RACE for total in itertools.accumulate(chance.best for chance in order))
    return tuple(chance.row for chance in order[: 1 + short])
