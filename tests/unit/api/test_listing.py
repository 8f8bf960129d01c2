"""How lists are cut into pages."""

import pytest
from pierhead_api.errors import InvalidArgumentError
from pierhead_api.listing import Listed, ListRequest, select_page

ANSWERS = [{"name": f"n{number}", "displayName": "x" if number % 2 else "y"} for number in range(5)]


def _names(answer):
    return [one["name"] for one in answer.get("things", [])]


def _select(answers=ANSWERS, **request):
    return select_page(Listed(answers, "things", ("displayName",), ("displayName",)), ListRequest(**request))


ORDERS = {
    "": ["n0", "n1", "n2", "n3", "n4"],
    "display_name": ["n1", "n3", "n0", "n2", "n4"],
    "displayName desc": ["n0", "n2", "n4", "n1", "n3"],
    " display_name asc ,": ["n1", "n3", "n0", "n2", "n4"],
}


@pytest.mark.parametrize(("order_by", "expected"), ORDERS.items())
def test_order(order_by, expected):
    assert _names(_select(order_by=order_by)) == expected


@pytest.mark.parametrize("order_by", ["", "display_name", "display_name desc"])
def test_pages_are_the_whole_in_order(order_by):
    pages, token = [], ""
    while True:
        page = _select(page_size=2, page_token=token, order_by=order_by)
        pages += _names(page)
        token = page.get("nextPageToken", "")
        if not token:
            break
    assert pages == _names(_select(order_by=order_by))


def test_what_goes_between_two_pages_moves_nothing():
    token = _select(page_size=2)["nextPageToken"]
    assert _names(_select(ANSWERS[2:], page_token=token)) == ["n2", "n3", "n4"]


def test_times_are_in_the_order_of_time():
    times = {"a": "2026-01-01T00:00:00.5Z", "b": "2026-01-01T00:00:00Z", "c": "2026-01-01T01:30:00+02:00", "d": ""}
    answers = [{"name": name, "createTime": time} for name, time in times.items()]
    answer = select_page(Listed(answers, "things", (), ("createTime",)), ListRequest(order_by="create_time"))
    assert _names(answer) == ["d", "c", "b", "a"]


@pytest.mark.parametrize(
    ("mask", "shown"),
    [
        ("", ["name", "displayName"]),
        ("*", ["name", "displayName"]),
        ("display_name", ["displayName"]),
        ("displayName,labels.x", ["displayName"]),
        ("nothing", []),
    ],
)
def test_read_mask_says_what_is_shown(mask, shown):
    page = _select(read_mask=mask, page_size=1)
    assert [list(one) for one in page["things"]] == [shown]
    assert _names(_select(page_token=page["nextPageToken"])) == ["n1", "n2", "n3", "n4"]


def test_an_empty_list_is_no_field():
    assert _select([]) == {}


def test_a_page_has_at_most_1000():
    many = [{"name": f"{number:05}"} for number in range(1100)]
    assert len(_select(many)["things"]) == 100
    assert len(_select(many, page_size=5000)["things"]) == 1000


WRONG = {
    "negative": {"page_size": -1},
    "no token": {"page_token": "nonsense"},
    "no token, though base64": {"page_token": "e30="},
    "no text": {"page_token": "ü"},
    "another filter's": {"page_token": _select(page_size=1)["nextPageToken"], "filter": "displayName=x"},
    "unknown order": {"order_by": "state"},
    "no direction": {"order_by": "displayName down"},
    "twice the same order": {"order_by": "displayName, display_name desc"},
}


@pytest.mark.parametrize("request_", WRONG.values(), ids=WRONG.keys())
def test_wrong_requests_are_refused(request_):
    with pytest.raises(InvalidArgumentError):
        _select(**request_)
