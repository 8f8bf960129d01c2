"""What the check on a GPU makes of answers."""

import json

from bench.server.gpu import Result, compare, describe


def answer(identifier, confidence):
    return json.dumps({"predictions": [{"ids": [identifier, "9"], "confidences": [confidence, 0.1]}]}).encode()


def test_answers_are_compared_by_their_pictures():
    expected = [answer("1", 0.5), answer("2", 0.75), answer("3", 0.9)]
    assert compare({0: expected[0], 2: expected[2]}, expected) == (2, 0.0)
    assert compare({1: answer("2", 0.5), 0: answer("7", 0.5)}, expected) == (1, 0.25)


def test_what_is_wrong_is_told():
    result = Result("lite0", "float32", "quick", 3.0, 8, 7, 0.4, False, {1: 10.0}, {1: 100.0}, 1.0)
    assert "lite0 float32: WRONG in its form quick: 7 of 8 top classes" in describe(result)
