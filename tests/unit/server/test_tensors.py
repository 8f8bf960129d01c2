"""JSON values as arrays, and what is said of those that are none."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pierhead_server.errors import ValueTensorError
from pierhead_server.signature import DATATYPES, Signature, TensorSpec, describe_model
from pierhead_server.tensors import to_array, to_picture, to_tensor

INT64 = "a whole number from -9223372036854775808 to 9223372036854775807"


def nested(value, depth):
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "dtype", "shape", "expected"),
    [
        (5, "float32", (), 5.0),
        (5, "int64", (), 5),
        (True, "bool", (), True),
        ([1, 2.5], "float32", (2,), [1.0, 2.5]),
        ([[1, 2], [3, 4]], "int8", (2, 2), [[1, 2], [3, 4]]),
        ([[1, 2], [3, 4]], "float64", (-1, 2), [[1.0, 2.0], [3.0, 4.0]]),
        ([1.0, 2], "int32", (-1,), [1, 2]),  # protobuf's JSON knows doubles only
        ([math.inf, -math.inf], "float16", (2,), [math.inf, -math.inf]),
        ([2**63 - 1, 1.0], "int64", (2,), [2**63 - 1, 1]),  # more digits than a double has
        ([2**64 - 1], "uint64", (1,), [2**64 - 1]),
        ([True, 0, 1.0], "bool", (3,), [True, False, True]),
        (np.float32(1.5), "float64", (), 1.5),
        (np.arange(3, dtype=np.int64), "float32", (3,), [0.0, 1.0, 2.0]),
        (np.array([1.0, 2.0]), "uint8", (2,), [1, 2]),
    ],
)
def test_value_becomes_an_array(value, dtype, shape, expected):
    array = to_tensor(value, TensorSpec("x", dtype, shape))
    assert array.tolist() == expected
    assert array.dtype == dtype


def test_nan_is_a_number_of_its_own():
    array = to_tensor([math.nan, 0.0], TensorSpec("x", "float32", (2,)))
    assert np.isnan(array).tolist() == [True, False]


def test_array_of_the_dtype_is_not_copied():
    given = np.ones((2, 2, 3), dtype=np.uint8)
    assert np.shares_memory(to_picture(given), given)


@pytest.mark.parametrize(
    ("value", "dtype", "shape", "message"),
    [
        # shapes
        ([1, 2, 3], "float32", (4,), "expected shape [4], got [3]"),
        ([[1, 2, 3]], "float32", (3,), "expected shape [3], got [1, 3]"),
        ([1], "float32", (-1, 2), "expected shape [any, 2], got [1]"),
        (5, "float32", (4,), "expected shape [4], got a single number"),
        ([5], "float32", (), "expected a single number, got [1]"),
        ([], "float32", (-1,), "expected shape [any], got [0]"),
        ([[]], "float32", (1, -1), "expected shape [1, any], got [1, 0]"),
        (np.ones((3, 2)), "float32", (2, 3), "expected shape [2, 3], got [3, 2]"),
        # ragged
        ([[1, 2], [3]], "float32", (2, 2), "[1]: ragged: holds 1, and its neighbours 2"),
        ([[[1], [2]], [[3], []]], "float32", (2, 2, 1), "[1][1]: ragged: holds 0, and its neighbours 1"),
        ([[1, 2], 3], "float32", (2, 2), "[1]: ragged: must be a list of 2, not a number"),
        ([1, [2]], "float32", (2,), "[1]: ragged: must be a number, not a list"),
        ([[], [1]], "float32", (2, 1), "[1]: ragged: holds 1, and its neighbours 0"),
        (nested(1, 33), "float32", (1,), "nested more than 32 lists deep"),
        (nested(1, 900), "float32", (1,), "nested more than 32 lists deep"),
        ([*nested(1, 900), 1], "float32", (1,), "nested more than 32 lists deep"),
        # types
        ("5", "float32", (), "must be a number, not a string"),
        ("5", "float32", (1,), "must be numbers of shape [1], not a string"),
        (None, "float32", (2,), "must be numbers of shape [2], not null"),
        ({"a": 1}, "float32", (), "must be a number, not an object"),
        (b"5", "float32", (), "must be a number, not binary data"),
        ([[0, 1, "2"]], "float32", (1, 3), "[0][2]: must be a number, not a string"),
        ([1, None], "float32", (2,), "[1]: must be a number, not null"),
        ([1, True], "float32", (2,), "[1]: must be a number, not a boolean"),
        ([False, True], "int64", (2,), "[0]: must be a number, not a boolean"),
        ([1, {}], "int64", (2,), "[1]: must be a number, not an object"),
        (np.array([True]), "float32", (1,), "must be numbers, not booleans"),
        (np.array([b"1"], dtype=object), "float32", (1,), "must be numbers, not object"),
        # ranges
        ([0, 256], "uint8", (2,), "[1]: must be a whole number from 0 to 255, not 256"),
        ([-1], "uint8", (1,), "[0]: must be a whole number from 0 to 255, not -1"),
        ([0.5, 1], "uint8", (2,), "[0]: must be a whole number from 0 to 255, not 0.5"),
        ([256.0], "uint8", (1,), "[0]: must be a whole number from 0 to 255, not 256.0"),
        ([math.nan], "int64", (1,), f"[0]: must be {INT64}, not NaN"),
        ([math.inf, 2**60], "int64", (2,), f"[0]: must be {INT64}, not inf"),
        ([2**63], "int64", (1,), f"[0]: must be {INT64}, not {2**63}"),
        ([2.0**63], "int64", (1,), f"[0]: must be {INT64}, not 9.223372036854776e+18"),
        ([2**60, 0.5], "int64", (2,), f"[1]: must be {INT64}, not 0.5"),
        (10**400, "int64", (), f"must be {INT64}, not a number of many digits"),
        ([10**400], "float32", (1,), "[0]: a number of many digits is too large for float32"),
        ([1, 1e39], "float32", (2,), "[1]: 1e+39 is too large for float32"),
        ([70000], "float16", (1,), "[0]: 70000 is too large for float16"),
        ([0, 2], "bool", (2,), "[1]: must be true or false, not 2"),
        (["a"], "bool", (1,), "[0]: must be true or false, not a string"),
        (np.array([[1, -1]]), "uint8", (1, 2), "[0][1]: must be a whole number from 0 to 255, not -1"),
        (np.array(2.0**64), "uint64", (), "must be a whole number from 0 to 18446744073709551615, not 1.8446744073709"),
        (np.array([255], dtype=np.uint8), "int8", (1,), "[0]: must be a whole number from -128 to 127, not 255"),
    ],
)
def test_what_is_no_tensor_is_named(value, dtype, shape, message):
    with pytest.raises(ValueTensorError) as caught:
        to_tensor(value, TensorSpec("x", dtype, shape))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[[0, 0]]], "expected shape [any, any, 3], got [1, 1, 2]"),
        ([[0, 0, 0]], "expected shape [any, any, 3], got [1, 3]"),
        ([], "expected shape [any, any, 3], got [0]"),
        (np.zeros((0, 4, 3), dtype=np.uint8), "expected shape [any, any, 3], got [0, 4, 3]"),
        ([[[0, 0, 0.1]]], "[0][0][2]: must be a whole number from 0 to 255, not 0.1"),
        ([[[0, 0, 0], [0, 300, 0]]], "[0][1][1]: must be a whole number from 0 to 255, not 300"),
    ],
)
def test_what_is_no_picture_is_named(value, message):
    with pytest.raises(ValueTensorError) as caught:
        to_picture(value)
    assert str(caught.value) == message


def test_picture_may_be_of_floats():
    assert to_picture([[[0.0, 127.0, 255.0]]]).tolist() == [[[0, 127, 255]]]


NUMBERS = arrays.arrays(
    dtype=st.sampled_from(["float32", "float64", "int64", "uint8", "int16"]),
    shape=arrays.array_shapes(min_dims=0, max_dims=4, max_side=5),
)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(NUMBERS)
def test_array_survives_the_way_through_a_list(array):
    read = to_tensor(array.tolist(), TensorSpec("x", array.dtype.name, array.shape))
    np.testing.assert_array_equal(read, array)
    assert read.dtype == array.dtype


JSON_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3)
JSON = st.recursive(
    JSON_LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=2)
)


@settings(derandomize=True, max_examples=500, deadline=None)
@given(JSON, st.sampled_from([dtype for dtype in DATATYPES if dtype != "bytes"]))
def test_any_value_is_an_array_or_a_clear_error(value, dtype):
    said = "sound"
    try:
        assert to_array(value, dtype).dtype == dtype
    except ValueTensorError as error:
        said = error.cause
    assert said


def test_signature_travels_and_is_described():
    signature = Signature((TensorSpec("image", "bytes", ()),), (TensorSpec("confidences", "float32", (1000,)),))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(signature), type=Signature) == signature
    assert describe_model("photos", "2", signature) == {
        "name": "photos",
        "versions": ["2"],
        "platform": "pytorch",
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": "confidences", "datatype": "FP32", "shape": [-1, 1000]}],
    }
