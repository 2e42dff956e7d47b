"""The handlers of my_fares, run as a worker would, without Redis."""

from decimal import Decimal

import pytest
from maskline.testing import Harness, callback
from my_fares import Fares


@pytest.fixture
def fares() -> Fares:
    """What the test looks into, in place of the module's own resource."""
    return Fares()


@pytest.fixture
def harness(fares: Fares) -> Harness:
    """Loads the module; each test opens one of its own."""
    return Harness("my_fares", resources={"fares": fares})


async def test_a_fare_is_settled_once_however_often_plivo_repeats_itself(
    harness: Harness, fares: Fares
) -> None:
    hangup = callback("SessionSecondPartyHangup", sequence_number=2, amount="0.0170")
    answer = callback("SessionSecondPartyAnswer", sequence_number=1)
    await harness.feed(hangup, hangup, answer)  # in the wrong order, and one twice
    assert [*fares.settled.values()] == [Decimal("0.0170")]
    assert harness.duplicates == 1
    assert not harness.dead_letters


async def test_a_hangup_without_a_charge_settles_nothing(harness: Harness, fares: Fares) -> None:
    await harness.feed(callback("SessionSecondPartyHangup", sequence_number=1))
    assert not fares.settled
    assert [call.error for call in harness.calls] == [None]
