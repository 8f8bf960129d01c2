"""Who may begin to send a body, and who is too slow: tables."""

import pytest
from pierhead_server.intake import IntakePolicy, Upload, extend_deadline, is_queue_full

NOW = 1000.0
POLICY = IntakePolicy(queue_size=8, body_bytes=100, least_pace=10.0, grace_seconds=5.0)


@pytest.mark.parametrize(
    ("waiting", "fresh", "full"),
    [
        (0, 0, False),
        (7, 0, False),
        (8, 0, True),
        (7, 1, True),  # the place is as good as taken
        (5, 2, False),
        (4, 4, True),
        (0, 80, False),  # however many begin, they keep nobody from half the queue
        (3, 80, False),
        (4, 80, True),
    ],
)
def test_uploads_that_begin_count_for_half_the_queue(waiting, fresh, full):
    assert is_queue_full(8, waiting=waiting, fresh=fresh) == full


def test_queue_of_one_takes_one():
    assert not is_queue_full(1, waiting=0, fresh=80)
    assert is_queue_full(1, waiting=1, fresh=0)


@pytest.mark.parametrize(
    ("left", "count", "seconds"),
    [
        (5, 0, 5),  # nothing has come: the grace runs out
        (1, 10, 2),  # a second's worth
        (1, 1000, 5),  # much at once is no leave to be silent for long
        (0.5, 1, 0.6),
        (5, 1, 5),
    ],
)
def test_deadline_moves_by_what_comes(left, count, seconds):
    upload = Upload(begun=NOW - 100, held=0, deadline=NOW + left)
    assert extend_deadline(POLICY, upload, count, NOW) == pytest.approx(NOW + seconds)


def test_upload_at_the_least_pace_never_ends():
    upload = Upload(begun=NOW, held=0, deadline=NOW + POLICY.grace_seconds)
    for second in range(1, 1000):
        upload.deadline = extend_deadline(POLICY, upload, 10, NOW + second)
        assert upload.deadline > NOW + second


def test_upload_at_half_the_pace_ends_after_twice_the_grace():
    upload = Upload(begun=NOW, held=0, deadline=NOW + POLICY.grace_seconds)
    second = 0
    while upload.deadline > NOW + second:
        second += 1
        upload.deadline = extend_deadline(POLICY, upload, 5, NOW + second)
    assert second == 2 * POLICY.grace_seconds
