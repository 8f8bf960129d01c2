"""The folder of copies: who may use, make and remove which. A Cache stands for a process: it has locks of its own."""

import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from pierhead_server import cache as caching
from pierhead_server.cache import Cache, choose_surplus, make_key

from tests.unit.server.conftest import wait_until

KEYS = [make_key("sha256", f"{number:064x}") for number in range(4)]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "models"


def end(cache):
    """What the end of its process does."""
    for descriptor in cache._locks.values():
        os.close(descriptor)
    cache._locks.clear()


def make(folder, key, size=10):
    """A copy, in use until its cache ends."""
    cache = Cache(folder)
    incoming = cache.begin(key)
    (incoming / "weights").write_bytes(bytes(size))
    return cache, cache.finish(incoming)


def get_names(folder):
    return {path.name for path in folder.iterdir()} - {".lock"}


def test_copy_bears_its_name_only_when_it_is_whole(folder):
    cache = Cache(folder)
    assert cache.use(KEYS[0]) is None
    incoming = cache.begin(KEYS[0])
    assert Cache(folder).use(KEYS[0]) is None
    copy = cache.finish(incoming)
    assert Cache(folder).use(KEYS[0]) == copy == folder / KEYS[0]
    assert cache.begin(KEYS[0]) is None


def test_only_owner_and_group_may_write(folder):
    before = os.umask(0)
    try:
        _, copy = make(folder, KEYS[0])
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (copy, folder / ".lock")] == [0o770, 0o660]


def test_who_waits_takes_what_was_made(folder, caplog):
    caplog.set_level("INFO", caching.__name__)
    maker = Cache(folder)
    incoming = maker.begin(KEYS[0])
    begun = []
    waiting = threading.Thread(target=lambda: begun.append(Cache(folder).begin(KEYS[0])))
    waiting.start()
    wait_until(lambda: "waiting for it" in caplog.text)
    maker.finish(incoming)
    waiting.join()
    assert begun == [None]
    assert caplog.text.count("waiting for it") == 1


@pytest.mark.parametrize("how", ["abandon", "die"])
def test_one_of_those_who_wait_goes_on_where_the_maker_fails(folder, caplog, how):
    caplog.set_level("INFO", caching.__name__)
    maker = Cache(folder)
    incoming = maker.begin(KEYS[0])
    (incoming / "half").touch()
    done = []

    def work():
        cache = Cache(folder)
        begun = cache.begin(KEYS[0])
        if begun is None:
            done.append("taken")
            return
        done.append(sorted(path.name for path in begun.iterdir()))
        cache.finish(begun)

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    wait_until(lambda: caplog.text.count("waiting for it") == 5)
    if how == "abandon":
        maker.abandon(incoming)
    else:
        end(maker)
    for thread in threads:
        thread.join()
    assert sorted(map(str, done)) == sorted(["[]", *["taken"] * 4])
    assert get_names(folder) == {KEYS[0]}


def test_what_ended_processes_left_is_removed(folder):
    making, other = Cache(folder), Cache(folder)
    making.begin(KEYS[0])
    other.begin(KEYS[1])
    (folder / "removing-half").mkdir()
    end(making)
    Cache(folder).begin(KEYS[2])
    assert get_names(folder) == {f"incoming-{key}" for key in KEYS[1:3]}


def test_spoilt_copy_gives_way_although_others_use_it(folder):
    user, copy = make(folder, KEYS[0])
    finder = Cache(folder)
    finder.use(KEYS[0])
    finder.abandon(copy)
    (aside,) = folder.glob("removing-*")
    assert (aside / "weights").exists()
    end(user)
    make(folder, KEYS[0], size=20)
    assert get_names(folder) == {KEYS[0]}


def test_sound_copy_in_the_place_of_a_spoilt_one_stays(folder):
    _, copy = make(folder, KEYS[0])
    finders = [Cache(folder), Cache(folder)]
    for finder in finders:
        finder.use(KEYS[0])
    finders[0].abandon(copy)
    make(folder, KEYS[0], size=20)
    finders[1].abandon(copy)
    assert (copy / "weights").stat().st_size == 20


@pytest.fixture
def aged(folder):
    """Copies of 10 bytes that nobody uses, each a second younger than the one before; the last one is in use."""
    for number, key in enumerate(KEYS):
        user, copy = make(folder, key)
        os.utime(copy, (number, number))
        if key != KEYS[-1]:
            end(user)
    return folder


@pytest.mark.parametrize(("keep", "left"), [(None, 0), (30, 0), (29, 1), (20, 1), (10, 2), (9, 3), (0, 3)])
def test_longest_unused_copies_go_until_the_rest_may_stay(aged, keep, left):
    Cache(aged, keep).make_room()
    assert get_names(aged) == set(KEYS[left:])


def test_copies_go_where_the_disk_is_too_small(aged, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5))
    Cache(aged).make_room(needed=5)
    assert get_names(aged) == set(KEYS)
    Cache(aged).make_room(needed=16)
    assert get_names(aged) == set(KEYS[2:])


def test_taking_a_copy_is_a_use(aged):
    taker = Cache(aged)
    taker.use(KEYS[0])
    end(taker)
    Cache(aged, 10).make_room()
    assert get_names(aged) == {KEYS[0], KEYS[3]}


def test_holding_a_copy_is_a_use_until_then(aged):
    taker = Cache(aged)
    copy = taker.use(KEYS[0])
    os.utime(copy, (0, 0))  # it was taken long ago
    Cache(aged).make_room()  # sees that it is still in use
    end(taker)
    Cache(aged, 10).make_room()
    assert get_names(aged) == {KEYS[0], KEYS[3]}


def test_nothing_but_copies_is_removed(folder):
    folder.mkdir()
    for name in ("lost+found", "sha256-short", f"x{KEYS[0]}"):
        (folder / name).mkdir()
    Cache(folder, 0).make_room(needed=2**62)
    make(folder, KEYS[0])
    assert get_names(folder) == {"lost+found", "sha256-short", f"x{KEYS[0]}", KEYS[0]}


A, B, ONCE = Path("sha256-a"), Path("listing-b"), Path("once-c")


@pytest.mark.parametrize(
    ("idle", "keep", "short", "surplus"),
    [
        ([], 0, 100, []),
        ([(A, 5), (B, 5)], None, 0, []),
        ([(A, 5), (B, 5)], 10, 0, []),
        ([(A, 5), (B, 5)], 9, 0, [A]),
        ([(A, 5), (B, 5)], 0, 0, [A, B]),
        ([(A, 5), (B, 5)], None, 1, [A]),
        ([(A, 5), (B, 5)], None, 6, [A, B]),
        ([(A, 5), (B, 5)], 10, 6, [A, B]),
        ([(A, 5), (ONCE, 5)], None, 0, [ONCE]),
        ([(A, 5), (ONCE, 5), (B, 5)], 10, 0, [ONCE]),
        ([(A, 5), (ONCE, 5), (B, 5)], 5, 0, [ONCE, A]),
    ],
)
def test_surplus_is_what_is_longest_unused(idle, keep, short, surplus):
    assert choose_surplus(idle, keep, short) == surplus
