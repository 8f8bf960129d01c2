"""The folder of compiled forms: who makes an entry, how often, and who removes which."""

import contextlib
import multiprocessing
import os
import signal
import time

import pytest
from pierhead_server import entries
from pierhead_server.converted import ConversionError

from tests.unit.server.conftest import DEADLINE_SECONDS

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


def test_what_killed_makers_left_is_removed_in_the_end(entry):
    kill_maker(entry)
    (left,) = entry.parent.glob("*.making")
    make(entry)
    entries.remove_unused(entry.parent)
    assert names(entry) == {KEY, f"{KEY}.lock", left.name}  # it may be of a maker on another node
    age(left, days=1.1)
    entries.remove_unused(entry.parent)
    assert names(entry) == {KEY, f"{KEY}.lock"}


def test_entry_at_which_makers_are_killed_is_given_up_for_a_day(entry):
    """A pod that is killed for want of memory begins anew: it is not to be killed time and again."""
    for _ in range(3):
        kill_maker(entry)
    with pytest.raises(ConversionError, match="the last 3 processes that made the compiled form were killed"):
        make(entry)
    make(entry.with_name(OTHER))
    for days in (1.1, -1.1):  # the clock went back
        age(entry.with_suffix(".tried"), days)
        make(entry)
        assert f"{KEY}.tried" not in names(entry)
        entries.remove(entry)
        entry.with_suffix(".tried").write_bytes(b"...")


def test_maker_that_was_ended_in_good_order_does_not_count(entry):
    for _ in range(5):
        kill_maker(entry)
        entries.forgive(entry)
    kill_maker(entry)
    with entries.alone(entry):  # by somebody else, whose try it is
        entries.forgive(entry)
    assert entry.with_suffix(".tried").read_bytes() == b"."
    entries.forgive(entry.with_name(OTHER))
    assert f"{OTHER}.lock" not in names(entry)


def test_entry_that_cannot_be_made_may_be_tried_time_and_again(entry):
    for _ in range(5):
        with pytest.raises(ConversionError, match="no such operator"), entries.alone(entry), entries.making(entry):
            raise ConversionError("no such operator")
    assert names(entry) == {f"{KEY}.lock"}


def test_removed_count_of_tries_is_no_failure(entry):
    """Its reader is told to remove it."""
    with entries.alone(entry), entries.making(entry):
        entry.with_suffix(".tried").unlink()
    assert names(entry) == {KEY, f"{KEY}.lock"}


def test_makers_that_see_no_lock_mix_nothing(entry):
    """On file systems that many nodes mount, a lock may be seen on one node alone."""
    entry.parent.mkdir()
    one, other = contextlib.ExitStack(), contextlib.ExitStack()
    for stack, name in ((one, "one"), (other, "other")):
        (stack.enter_context(entries.making(entry)) / name).touch()
    one.close()
    with pytest.raises(OSError, match="not empty"):
        other.close()
    assert [path.name for path in entry.iterdir()] == ["one"]
    assert names(entry) == {KEY}


@pytest.fixture
def folder(entry):
    """A cache with an entry that nobody has used for a month, and what is none of ours."""
    make(entry)
    others = entry.parent / ("2" * 32)
    others.mkdir()
    (others / "form.json").touch()  # as release 0.1.0 left it, whose pods may compute with it
    (entry.parent / ("3" * 32)).write_text("a file")
    (entry.parent / ("4" * 32)).symlink_to("4" * 32)
    (entry.parent / "mine").mkdir()
    for path in entry.parent.iterdir():
        if not path.is_symlink():
            age(path, days=31)
    return entry.parent


def test_entry_that_nobody_used_for_a_month_is_removed(entry, folder):
    kept = entry.with_name(OTHER)
    make(kept)
    age(kept, days=29)
    before = names(entry)
    entries.remove_unused(folder)
    assert before - names(entry) == {KEY}


def test_entry_in_use_is_touched(entry, folder):
    entries.touch(entry)
    entries.touch(entry.with_name(OTHER))  # which is gone
    entries.remove_unused(folder)
    assert entry.exists()


def test_entry_that_cannot_be_removed_keeps_no_other_one(entry, folder, monkeypatch, caplog):
    make(entry.with_name(OTHER))
    age(entry.with_name(OTHER), days=31)
    remove = entries.remove

    def fail(path):
        if path == entry:
            raise PermissionError("not ours")
        remove(path)

    monkeypatch.setattr(entries, "remove", fail)
    entries.remove_unused(folder)
    assert (entry.exists(), entry.with_name(OTHER).exists()) == (True, False)
    assert "stays: not ours" in caplog.text
