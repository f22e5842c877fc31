import itertools
import math
import random

import pytest

from smdiff.evaluation.statistics import paired, pass_at_k, wilson


def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample():
    for n in range(1, 7):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-15)
    product = 1 - math.prod(1 - 100 / i for i in range(200 - 13 + 1, 200 + 1))  # the form of the paper's program
    assert pass_at_k(200, 13, 100) == pytest.approx(product, abs=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(5, 6, 1), (5, -1, 1), (5, 2, 0), (5, 2, 6), (0, 0, 1)])
def test_pass_at_k_refuses_impossible_counts(n, c, k):
    with pytest.raises(ValueError, match="pass@k"):
        pass_at_k(n, c, k)


# The first four: R. G. Newcombe, Statistics in Medicine 17, 1998, 857-872, table I, method 3. The others: n / (n + z^2)
# and the symmetry of p = 1/2 give them in closed form.
@pytest.mark.parametrize(
    ("passed", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718),
        (0, 164, 0, 0.0229), (164, 164, 0.9771, 1), (82, 164, 0.4244, 0.5756), (1, 1, 0.2065, 1),
    ],
)  # fmt: skip
def test_wilson_of_published_examples(passed, n, low, high):
    assert wilson([1.0] * passed + [0.0] * (n - passed)) == pytest.approx((low, high), abs=5e-5)


def test_wilson_counts_tasks_and_not_samples():
    plain = wilson([0.0, 1.0] * 50)
    assert wilson([0.5] * 100) == pytest.approx(plain)  # no variance: as many as tasks
    assert wilson([0.1 + 0.2, 0.3] * 50) == pytest.approx(wilson([0.3] * 100))  # nor is rounding one
    # Scores 0.25 and 0.75: SE^2 = 1/16 / 100, the standard error of 400 tasks that pass or fail.
    assert wilson([0.25, 0.75] * 50) == pytest.approx(wilson([0.0, 1.0] * 200))
    for values in ([], [0.5, 1.1], [float("nan")]):
        with pytest.raises(ValueError, match="scores"):
            wilson(values)


def table(both: int, first: int, second: int, neither: int) -> tuple[list[float], list[float]]:
    a = [1.0] * (both + first) + [0.0] * (second + neither)
    b = [1.0] * both + [0.0] * first + [1.0] * second + [0.0] * neither
    return a, b


# Newcombe 1998, 2635-2650, method 10; the others (Bentur et al. 2009, Cavo et al. 2012) from M. W. Fagerland,
# S. Lydersen, P. Laake, Statistical Analysis of Contingency Tables, 2017, chapter 8.
@pytest.mark.parametrize(
    ("counts", "value", "low", "high", "verdict"),
    [
        ((36, 12, 2, 0), 0.2, 0.0569, 0.3404, "better"),
        ((1, 1, 7, 12), -0.2857, -0.5069, -0.0256, "worse"),
        ((59, 6, 16, 80), -0.0621, -0.1186, -0.0046, "worse"),
    ],
)
def test_paired_differences_of_published_examples(counts, value, low, high, verdict):
    a, b = table(*counts)
    found = paired(a, b)
    assert found["value"] == pytest.approx(value, abs=5e-5)
    assert found["interval"] == pytest.approx([low, high], abs=5e-5)
    assert (found["better"], found["worse"], found["equal"]) == (counts[1], counts[2], counts[0] + counts[3])
    assert found["verdict"] == verdict
    swapped = paired(b, a)
    assert swapped["interval"] == pytest.approx([-high, -low], abs=5e-5)
    assert {swapped["verdict"], verdict} == {"better", "worse"}


def test_two_that_agree_on_every_task_still_have_an_interval():
    for scores in ([0.0, 1.0] * 82, [1.0] * 164, [0.0] * 164, [0.5] * 10, [0.0, 0.25, 0.5, 1.0] * 40, [1.0]):
        found = paired(scores, scores)
        low, high = found["interval"]
        assert low < -1e-4 < 0 < 1e-4 < high
        assert (found["value"], found["equal"], found["verdict"]) == (0, len(scores), "within noise")
    assert paired([1.0] * 5, [0.0] * 5)["interval"] == pytest.approx([1 - 2**0.5 * 0.4345, 1], abs=1e-4)
    with pytest.raises(ValueError, match="same tasks"):
        paired([1.0], [1.0, 0.0])


def test_intervals_cover_what_they_claim():
    """164 tasks of random difficulty, 1 or 4 samples each; two models whose chances differ by a task's own amount."""
    draw = random.Random(0)
    runs = 250
    for samples in (1, 4):
        covered = of_difference = 0
        for _ in range(runs):
            chances = [draw.betavariate(0.8, 1.2) for _ in range(164)]
            better = [p + (1 - p) * draw.random() * 0.3 for p in chances]
            a, b = ([sum(draw.random() < p for _ in range(samples)) / samples for p in of] for of in (better, chances))
            low, high = wilson(b)
            covered += low <= 0.4 <= high
            low, high = paired(a, b)["interval"]
            of_difference += low <= 0.6 * 0.15 <= high
        # 0.95 less three standard errors; far wider intervals would cover always.
        assert 0.91 <= covered / runs <= 0.99
        assert 0.91 <= of_difference / runs <= 0.995
