import pytest
from native_kit import BUILT, WAYS, go

collect_ignore = [] if BUILT else ["test_in_c.py"]


@pytest.fixture(params=WAYS)
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the parts in C, and as though there were none."""
    go(request.param, monkeypatch)
