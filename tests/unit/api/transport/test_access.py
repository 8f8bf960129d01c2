"""Who may predict is asked once and remembered for a moment."""

import asyncio

import pytest
from pierhead_api import access as accesses
from pierhead_api.access import Access, Asked, Authentication
from pierhead_api.errors import PermissionDeniedError, UnauthenticatedError, UnavailableError

PHOTOS = Asked("endpoints", "team-a", "photos")


class Rbac:
    def __init__(self):
        self.answers = []
        self.asked = 0
        self.hold = asyncio.Event()
        self.hold.set()

    async def ask(self, token, asked):
        self.asked += 1
        await self.hold.wait()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
async def rbac():
    return Rbac()


@pytest.mark.parametrize(
    ("answer", "seconds", "error"),
    [(True, 10, None), (False, 2, PermissionDeniedError), (UnauthenticatedError("no"), 2, UnauthenticatedError)],
)
async def test_verdict_is_remembered_for_a_moment(rbac, answer, seconds, error):
    now = 0.0
    access = Access(rbac.ask, lambda: now)
    rbac.answers = [answer]

    async def check():
        if error is None:
            await access.check("token", PHOTOS)
            return
        with pytest.raises(error):
            await access.check("token", PHOTOS)

    await check()
    now = seconds - 0.1
    await check()
    assert rbac.asked == 1
    now = seconds
    await check()
    assert rbac.asked == 2


async def test_verdict_is_of_this_token_and_this_endpoint_alone(rbac):
    access = Access(rbac.ask)
    rbac.answers = [True, False, False, False]
    await access.check("token", PHOTOS)
    for token, asked in [
        ("other", PHOTOS),
        ("token", Asked("models", "team-a", "photos")),
        ("token", Asked("endpoints", "team-b", "photos")),
    ]:
        with pytest.raises(PermissionDeniedError):
            await access.check(token, asked)


async def test_those_who_ask_at_once_share_a_question(rbac):
    access = Access(rbac.ask)
    rbac.answers = [True]
    rbac.hold.clear()
    waiting = [asyncio.create_task(access.check("token", PHOTOS)) for _ in range(5)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    rbac.hold.set()
    await asyncio.gather(*waiting[1:])
    assert rbac.asked == 1


async def test_what_nobody_could_say_is_not_remembered(rbac):
    access = Access(rbac.ask)
    rbac.answers = [UnavailableError("away"), True]
    with pytest.raises(UnavailableError):
        await access.check("token", PHOTOS)
    await access.check("token", PHOTOS)


async def test_memory_is_bounded_and_forgets_what_was_asked_for_longest_ago(rbac, monkeypatch):
    monkeypatch.setattr(accesses, "_MOST_REMEMBERED", 2)
    access = Access(rbac.ask)
    rbac.answers = [True]
    for token in ("a", "b", "a", "c", "a"):
        await access.check(token, PHOTOS)
    assert rbac.asked == 3
    await access.check("b", PHOTOS)
    assert rbac.asked == 4


async def test_nobodies_push_out_nobody_else_and_are_asked_about_one_after_another(rbac, monkeypatch):
    monkeypatch.setattr(accesses, "_MOST_REMEMBERED", 2)
    monkeypatch.setattr(accesses, "_MOST_ASKED", 2)
    access = Access(rbac.ask)
    rbac.answers = [True, UnauthenticatedError("no")]
    await access.check("alice", PHOTOS)
    for number in range(5):
        with pytest.raises(UnauthenticatedError):
            await access.check(f"nobody-{number}", PHOTOS)
    await access.check("alice", PHOTOS)
    assert rbac.asked == 6
    rbac.hold.clear()
    waiting = [asyncio.create_task(access.check(f"nobody-{number}", PHOTOS)) for number in range(5, 7)]
    await asyncio.sleep(0)
    with pytest.raises(UnavailableError, match="too many"):
        await access.check("nobody-8", PHOTOS)
    await access.check("alice", PHOTOS)
    rbac.hold.set()
    await asyncio.wait(waiting)


async def test_token_itself_is_not_kept(rbac):
    access = Access(rbac.ask)
    rbac.answers = [True]
    await access.check("secret-token", PHOTOS)
    assert "secret-token" not in repr(vars(access._memory))


async def test_user_is_asked_for_once_in_a_moment():
    asked = []

    async def ask(token):
        asked.append(token)
        if token == "nobodys":
            raise UnauthenticatedError("no")
        return "alice"

    now = 0.0
    authentication = Authentication(ask, lambda: now)
    assert [await authentication.find_user("t") for _ in range(2)] == ["alice", "alice"]
    for _ in range(2):
        with pytest.raises(UnauthenticatedError):
            await authentication.find_user("nobodys")
    assert asked == ["t", "nobodys"]
    now = 10.0
    await authentication.find_user("t")
    assert asked == ["t", "nobodys", "t"]
