import re

import pytest
from pierhead_operator import names

DNS_1035 = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")


@pytest.mark.parametrize("name", ["a", "photos-1", "1234567890", "x" * 63, "y" * 62 + "-z"[:1] + "z", "0" * 63])
@pytest.mark.parametrize("derive", [names.server, names.route])
def test_derived_names_are_valid_service_names(derive, name):
    derived = derive(name)
    assert DNS_1035.match(derived)
    assert len(derived) <= names.MAX_NAME


def test_derived_names_keep_long_names_apart():
    one, two = "x" * 62 + "1", "x" * 62 + "2"
    assert names.server(one) != names.server(two)
    assert names.server(one) == names.server(one)


def test_shorten_leaves_short_names_alone():
    assert names.shorten("photos") == "photos"
