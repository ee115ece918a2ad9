"""Naming the odd rank: the sentences that users see when their ranks do not train the same thing."""

from dataclasses import dataclass

import pytest

from gtcbmuf.agreement import difference, fingerprint, ranks


@dataclass(frozen=True)
class Parameter:
    name: str
    shape: tuple
    dtype: str = "float32"


@dataclass(frozen=True)
class Strategy:
    threshold: float


WEIGHT, BIAS = Parameter("fc.weight", (10, 4)), Parameter("fc.bias", (10,))


def of(*parameters, strategy=None, **settings):
    return fingerprint(parameters, strategy, **settings)


@pytest.mark.parametrize("of_ranks, sentence", [
    ([of(WEIGHT), of(WEIGHT), of(Parameter("fc.weight", (10, 5)))],
     "rank 2: parameter 'fc.weight' has shape (10, 5), the others (10, 4)"),
    ([of(WEIGHT), of(Parameter("fc.weight", (10, 4), "float64"))],
     "rank 1: parameter 'fc.weight' has dtype float64, rank 0 float32"),
    ([of(WEIGHT, BIAS), of(BIAS, WEIGHT), of(BIAS, WEIGHT)],
     "rank 0: parameter 0 is fc.weight, the others fc.bias"),
    ([of(WEIGHT, BIAS), of(WEIGHT), of(WEIGHT, BIAS)],
     "rank 1: has nothing more, rank 0 and 2: parameter 1 is fc.bias"),
    ([of(WEIGHT, strategy=Strategy(0.1))] * 3 + [of(WEIGHT, strategy=Strategy(0.2))],
     "rank 3: strategy is Strategy(threshold=0.2), the others Strategy(threshold=0.1)"),
    ([of(average=True), of(average=False), of(average=True), of(average=False), of(average=True)],
     "rank 1 and 3: average is False, the others True"),
    ([of(steps=1), of(steps=2), of(steps=3)],
     "rank 1: steps is 2, rank 2: steps is 3, rank 0: steps is 1"),
])  # fmt: skip
def test_the_first_difference_is_named(of_ranks, sentence):
    assert difference(of_ranks).startswith(sentence + ";")


def test_versions_come_first():
    new = [("gtcbmuf", "9.9"), *of(WEIGHT)[1:]]
    assert difference([of(BIAS), new, of(BIAS)]).startswith("rank 1: gtcbmuf is 9.9, the others")


def test_long_lists_are_cut():
    assert ranks([2]) == "2"
    assert ranks([2, 3]) == "2 and 3"
    assert ranks(range(10)) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"
