"""Ratios are made within a round, and never across."""

import pytest

from bench.paired import Key, Sample, Spread, best_of, by_round, ratios, spread


def sample(number, variant, per_s, case="64 clients", part="ingest"):
    return Sample(part, case, variant, number, {"per_s": per_s})


def test_spread_is_median_least_and_greatest():
    assert spread([3.0, 1.0, 2.0, 10.0]) == Spread(2.5, 1.0, 10.0, 4)


def test_spread_of_nothing():
    assert spread([]) is None


def test_by_round_takes_one_variant_of_one_case_of_one_part():
    samples = [
        sample(1, "maskline", 10.0), sample(2, "maskline", 20.0), sample(1, "empty", 5.0),
        sample(3, "maskline", 1.0, case="8 clients"), sample(4, "maskline", 1.0, part="worker"),
    ]  # fmt: skip
    key = Key("64 clients", "maskline")
    assert by_round(samples, "ingest", key, "per_s") == {1: 10.0, 2: 20.0}
    assert by_round(samples, "ingest", key, "p99_us") == {}


def test_ratios_pair_rounds_and_drop_those_without_a_base():
    assert ratios({1: 10.0, 2: 20.0, 3: 30.0}, {2: 5.0, 1: 10.0, 4: 1.0}) == [1.0, 4.0]


def test_ratios_survive_a_base_of_nothing():
    assert ratios({1: 10.0}, {1: 0.0}) == []


def test_a_machine_that_slows_down_does_not_change_the_ratio():
    samples = [sample(number, "a", 30 / number) for number in range(1, 7)]
    samples += [sample(number, "b", 20 / number) for number in range(1, 7)]
    found = spread(
        ratios(*(by_round(samples, "ingest", Key("64 clients", name), "per_s") for name in ("a", "b")))
    )
    assert found is not None
    assert (found.low, found.high) == pytest.approx((1.5, 1.5))


@pytest.mark.parametrize(
    ("most", "expected"), [(True, {1: 4.0, 2: 2.0, 3: 9.0}), (False, {1: 1.0, 2: 2.0, 3: 9.0})]
)
def test_best_of_is_found_in_each_round(most, expected):
    assert best_of([{1: 1.0, 2: 2.0}, {1: 4.0, 3: 9.0}], most=most) == expected
