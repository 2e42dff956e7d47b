from maskline.runtime.logs.rate_limit import LogRateLimit


def test_same_line_is_due_once_an_interval_and_others_are_counted(monkeypatch):
    now = 100.0
    monkeypatch.setattr("maskline.runtime.logs.rate_limit.monotonic", lambda: now)
    limit = LogRateLimit(interval_s=10)
    assert [limit.due("a", 1), limit.due("a", 1), limit.due("a", 2), limit.due("a", 1)] == [
        True, False, True, False,
    ]  # fmt: skip
    assert limit.take_suppressed() == 2
    assert limit.take_suppressed() == 0
    now = 109.0
    assert not limit.due("a", 1)
    now = 110.5
    assert limit.due("a", 1)


def test_lines_of_one_interval_are_bounded(monkeypatch):
    now = 100.0
    monkeypatch.setattr("maskline.runtime.logs.rate_limit.monotonic", lambda: now)
    limit = LogRateLimit(interval_s=10, lines_max=3)
    for now in range(100, 200):
        for number in range(50):
            limit.due("refused", now, number)
        assert len(limit._logged_at) <= 3
    assert limit.take_suppressed() == 100 * 50 - 10 * 3
