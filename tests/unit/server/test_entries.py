"""The folder of compiled forms: who makes an entry, how often, and who removes which."""

import multiprocessing
import os
import signal
import time

import pytest
from pierhead_server import entries
from pierhead_server.converted import ConversionError

from tests.unit.server.conftest import DEADLINE_SECONDS, wait_until

KEY, OTHER = "0" * 32, "1" * 32
DAY = 24 * 3600


@pytest.fixture
def entry(tmp_path):
    return tmp_path / "cache" / KEY


def make(entry):
    with entries.alone(entry), entries.making(entry) as made:
        (made / "model.xml").touch()


def make_until_killed(entry):
    with entries.alone(entry), entries.making(entry):
        os.kill(os.getpid(), signal.SIGKILL)


def kill_maker(entry):
    maker = multiprocessing.get_context("fork").Process(target=make_until_killed, args=(entry,))
    maker.start()
    maker.join(DEADLINE_SECONDS)
    assert maker.exitcode == -signal.SIGKILL


def age(path, days):
    moment = time.time() - days * DAY
    os.utime(path, (moment, moment))


def names(entry):
    return {path.name for path in entry.parent.iterdir()}


def test_entry_is_there_once_it_is_whole(entry):
    with entries.alone(entry), entries.making(entry):
        assert not entry.exists()
    make(entry.with_name(OTHER))
    assert names(entry) == {KEY, f"{KEY}.lock", OTHER, f"{OTHER}.lock"}


def test_what_killed_makers_left_is_removed_by_the_next(entry):
    kill_maker(entry)
    assert names(entry) == {f"{KEY}.lock", f"{KEY}.making", f"{KEY}.tried"}
    make(entry)
    assert names(entry) == {KEY, f"{KEY}.lock"}


def test_entry_at_which_makers_are_killed_is_given_up_for_a_day(entry):
    """A pod that is killed for want of memory begins anew: it is not to be killed time and again."""
    for _ in range(3):
        kill_maker(entry)
    with pytest.raises(ConversionError, match="were killed 3 times in a day, most likely for want of memory"):
        make(entry)
    make(entry.with_name(OTHER))
    age(entry.with_suffix(".tried"), days=1.1)
    make(entry)
    assert f"{KEY}.tried" not in names(entry)


def test_entry_that_cannot_be_made_may_be_tried_time_and_again(entry):
    for _ in range(5):
        with pytest.raises(ConversionError, match="no such operator"), entries.alone(entry), entries.making(entry):
            raise ConversionError("no such operator")
    assert names(entry) == {f"{KEY}.lock"}


def test_entry_that_nobody_used_for_a_month_is_removed(entry, tmp_path):
    make(entry)
    foreign = entry.parent / "mine"
    foreign.mkdir()
    left = entry.parent / f"{OTHER}.making"
    left.mkdir()
    for path in (entry, foreign, left):
        age(path, days=31)
    kept = entry.with_name("2" * 32)
    make(kept)
    age(kept, days=29)
    entries.remove_unused(entry.parent)
    assert {path.name for path in entry.parent.iterdir() if path.is_dir()} == {kept.name, "mine"}


def test_entry_in_use_stays(entry):
    make(entry)

    def use():
        entries.use(entry)
        age(entry, days=31)
        signal.pause()

    user = multiprocessing.get_context("fork").Process(target=use)
    user.start()
    try:
        wait_until(lambda: time.time() - entry.stat().st_mtime > DAY)
        entries.remove_unused(entry.parent)
        assert entry.exists()
    finally:
        user.kill()
        user.join(DEADLINE_SECONDS)
    entries.remove_unused(entry.parent)
    assert not entry.exists()


def test_use_is_remembered(entry):
    make(entry)
    age(entry, days=31)
    entries.use(entry)
    assert time.time() - entry.stat().st_mtime < DAY


def test_entry_that_is_gone_is_not_used(entry):
    with pytest.raises(FileNotFoundError):
        entries.use(entry)
