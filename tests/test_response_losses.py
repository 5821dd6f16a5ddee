"""Methods that read nothing but logits: values, gradients and what they must not notice."""

import math

import pytest

from methods._warm_up import PUBLISHED, warm_up


def test_the_warm_up_is_the_published_one_over_240_epochs():
    weight = warm_up(PUBLISHED)
    for epoch in range(240):
        assert weight(epoch / 239) == pytest.approx(min((epoch + 1) / 20, 1), abs=1e-15)


@pytest.mark.parametrize(("phi", "ends"), [(0, (1, 1)), (1, (0.05, 1)), (2, (0.05, 0.525))])
def test_the_warm_up_goes_from_a_twentieth_to_one_or_not_at_all(phi: float, ends):
    weight = warm_up(phi)
    assert (weight(0.0), weight(1.0)) == pytest.approx(ends)


@pytest.mark.parametrize("phi", [-0.1, math.inf, math.nan])
def test_a_warm_up_of_no_length_is_refused(phi: float):
    with pytest.raises(ValueError, match="phi"):
        warm_up(phi)
