import numpy as np
import pytest

from clv.btyd.likelihood import group_histories, maximise


def test_equal_histories_are_grouped_with_the_sum_of_their_weights() -> None:
    rows = group_histories([2, 0, 2, 2], [9.0, 0.0, 9.0, 5.0], [30.0, 10.0, 30.0, 30.0], [1.0, 2.0, 3.0, 4.0])
    assert list(zip(rows.x, rows.t_x, rows.T, rows.weight, strict=True)) == [
        (0.0, 0.0, 10.0, 2.0),
        (2.0, 5.0, 30.0, 4.0),
        (2.0, 9.0, 30.0, 4.0),
    ]
    assert np.array_equal(rows.distinct[rows.x_index], rows.x)


@pytest.mark.parametrize(
    ("weights", "message"),
    [([1.0], "weights has 1 rows, frequency 2"), ([1.0, -1.0], "not negative"), ([0.0, 0.0], "not all zero")],
)
def test_weights_that_do_not_fit_are_refused(weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group_histories([0, 0], [0, 0], [1, 2], weights)


def test_the_maximum_of_a_normal_likelihood_has_the_known_standard_errors() -> None:
    centre, precision = np.array([1.0, -2.0]), np.array([[4.0, 1.0], [1.0, 2.0]])

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        return float((theta - centre) @ precision @ (theta - centre) / 2 + 7), precision @ (theta - centre)

    found = maximise(loss, [[5.0, 5.0], [-3.0, 0.0]], [(-9.0, 9.0)] * 2)
    assert found.theta == pytest.approx(centre, abs=1e-6)
    assert found.log_likelihood == pytest.approx(-7)
    assert found.stderr == pytest.approx(np.sqrt(np.diag(np.linalg.inv(precision))), rel=1e-5)
    on_bound = maximise(loss, [[0.0, 0.0]], [(-9.0, 0.5), (-9.0, 9.0)])
    assert np.isnan(on_bound.stderr[0])
    assert on_bound.stderr[1] == pytest.approx(1 / np.sqrt(2), rel=1e-5)


def test_a_flat_ridge_has_no_standard_errors() -> None:
    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        return float(theta.sum() ** 2 / 2), np.full(2, theta.sum())

    assert np.isnan(maximise(loss, [[1.0, 2.0]], [(-9.0, 9.0)] * 2).stderr).all()
