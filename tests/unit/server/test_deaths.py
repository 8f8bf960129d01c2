"""Which deaths take a server out of traffic, and for how long: tables of what happened, on a clock of their own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pierhead_server import deaths as policy
from pierhead_server.deaths import FIRST_QUIET_SECONDS, FORGIVEN_SECONDS, MOST_QUIET_SECONDS, WINDOW_SECONDS, Deaths
from pierhead_server.messages import Call

A, B, C = (Call("vertex", body) for body in (b"a", b"b", b"c"))


class Watched:
    """Deaths on a clock that stands until it is told."""

    def __init__(self):
        self.now = 1000.0
        self.deaths = Deaths(lambda: self.now)

    def play(self, *happened):
        """Calls that died alone, lists of those that died together, () for an idle death; `ok(CALL)`; seconds."""
        for one in happened:
            if isinstance(one, (int, float)):
                self.now += one
            elif isinstance(one, Ok):
                self.deaths.acquit(one.call)
            else:
                self.deaths.record("exit code 3", [one] if isinstance(one, Call) else one)
        return self.deaths.explain()


class Ok:
    """A call that was answered."""

    def __init__(self, call):
        self.call = call


ok = Ok
IDLE = ()


@pytest.fixture
def watched():
    return Watched()


@pytest.mark.parametrize(
    ("happened", "out"),
    [
        pytest.param([], False, id="nothing"),
        pytest.param([IDLE, IDLE], False, id="one less than it takes"),
        pytest.param([IDLE, 6, IDLE, 6, IDLE], True, id="idle, every six seconds"),
        pytest.param([IDLE, 31, IDLE, 31, IDLE], False, id="never three in a minute"),
        pytest.param([A, 6, B, 6, C], True, id="of other requests each time"),
        pytest.param([A, A, A, A, A, A], False, id="one request kills"),
        pytest.param([A, B, A, B, A, B], False, id="two requests kill"),
        pytest.param([A, ok(B), A, ok(C), A], False, id="one request kills, others are answered"),
        pytest.param([A, ok(A), 6, A, ok(A), 6, A, ok(A)], True, id="one request for ever, that is answered otherwise"),
        pytest.param([A, IDLE, IDLE], True, id="a request and twice nobody's fault"),
        pytest.param([[A, B, C]], False, id="a batch, nobody knows who"),
        pytest.param([[A, B, C], ok(A), ok(B), C, C, IDLE], False, id="the batch's death is its culprit's"),
        pytest.param([[A, B], B, ok(A), IDLE], False, id="who was in the batch is acquitted later"),
        pytest.param([[A, B], ok(A), ok(B)] * 3, True, id="batches of innocents"),
        pytest.param([[A, B]] * 9, False, id="batches that were not computed since"),
    ],
)
def test_deaths_that_take_a_server_out(watched, happened, out):
    assert (watched.play(*happened) is not None) is out


def test_cause_stays_the_same_while_it_is_out(watched):
    cause = watched.play(IDLE, IDLE, IDLE)
    assert cause == "the model's process died 3 times within 60 s: exit code 3"
    watched.deaths.record("SIGSEGV")
    assert watched.play(30) == cause


def test_it_is_back_once_its_processes_have_lived_for_a_while(watched):
    assert watched.play(IDLE, IDLE, IDLE, FIRST_QUIET_SECONDS - 1)
    assert watched.play(1) is None


def test_each_death_meanwhile_prolongs_it(watched):
    assert watched.play(IDLE, IDLE, IDLE, *[FIRST_QUIET_SECONDS - 1, IDLE] * 20, FIRST_QUIET_SECONDS - 1)
    assert watched.play(1) is None


def test_request_that_killed_before_does_not_prolong_it(watched):
    assert watched.play(IDLE, IDLE, A)
    assert watched.play(WINDOW_SECONDS / 2, A, FIRST_QUIET_SECONDS - WINDOW_SECONDS / 2) is None


def test_each_relapse_takes_longer_up_to_a_bound(watched):
    for quiet in (60, 120, 240, 300, 300):
        assert watched.play(IDLE, 6, IDLE, 6, IDLE, quiet - 1)
        assert watched.play(1) is None
    assert quiet == MOST_QUIET_SECONDS


def test_relapse_after_long_is_none(watched):
    watched.play(IDLE, IDLE, IDLE, FIRST_QUIET_SECONDS, FORGIVEN_SECONDS)
    assert watched.play(IDLE, IDLE, IDLE, FIRST_QUIET_SECONDS) is None


def test_one_death_after_it_is_back_is_no_relapse(watched):
    assert watched.play(IDLE, IDLE, IDLE, FIRST_QUIET_SECONDS, IDLE, IDLE) is None
    assert watched.play(IDLE)


@pytest.mark.parametrize(
    ("before", "call", "news"),
    [
        pytest.param([], [A], True, id="the first"),
        pytest.param([A], [B], True, id="another request's"),
        pytest.param([A], [A], True, id="nobody was ever answered"),
        pytest.param([ok(B), A], [A], False, id="the model answers others"),
        pytest.param([ok(B), A, 10, A, WINDOW_SECONDS - 9], [A], True, id="the model answered others long ago"),
        pytest.param([ok(B), A, ok(A)], [A], True, id="it was answered meanwhile"),
        pytest.param([ok(B), IDLE], [], True, id="idle"),
    ],
)
def test_death_that_tells_of_the_model(watched, before, call, news):
    watched.play(*before)
    assert watched.deaths.record("SIGKILL", call) is news


@given(st.lists(st.sampled_from([IDLE, A, B, [A, B], ok(A), ok(B), 1, 7, 30, 70]), max_size=60))
def test_without_a_death_it_is_always_back_within_the_longest_quiet(happened):
    watched = Watched()
    watched.play(*happened)
    assert watched.play(MOST_QUIET_SECONDS) is None


def test_what_it_remembers_is_bounded(watched):
    watched.play(*[[Call("raw", b"%d" % number), A] for number in range(1000)])
    assert len(watched.deaths._recent) == policy._MOST_REMEMBERED
