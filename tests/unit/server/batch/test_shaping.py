"""`instanceConfig`: what of a line the model gets, and what the output calls it by."""

import csv
import json

import pytest
from arro3.io import read_parquet
from pierhead_server.batch.document import Document, InstanceConfig, Task
from pierhead_server.batch.errors import LineError
from pierhead_server.batch.instances import Instance, Reading, read_instance
from pierhead_server.batch.planning import _describe

from tests.unit.server.batch.jobs import Answering, Runner, make_document, read_outputs

ROW = {"id": 7, "b": [1], "a": "x"}


def read(config, line=ROW, form="jsonl", columns=()):
    data = line if isinstance(line, bytes) else json.dumps(line).encode()
    return read_instance(Reading(form, InstanceConfig.model_validate(config)), data, columns)


# An instanceConfig -> what the model gets of ROW.
SHAPED = [
    ({}, ROW),
    ({"instanceType": "object"}, ROW),
    ({"includedFields": ["a", "id"]}, {"a": "x", "id": 7}),
    ({"excludedFields": ["b", "none"]}, {"id": 7, "a": "x"}),
    ({"keyField": "id"}, {"b": [1], "a": "x"}),
    ({"keyField": "id", "excludedFields": ["b"]}, {"a": "x"}),
    ({"keyField": "id", "includedFields": ["id", "b"]}, {"b": [1]}),
    ({"instanceType": "array", "includedFields": ["a", "b"]}, ["x", [1]]),
    ({"instanceType": "array", "keyField": "id", "includedFields": ["b", "id", "a"]}, [[1], "x"]),
]


@pytest.mark.parametrize(("config", "value"), SHAPED)
def test_model_gets_the_fields_that_it_should(config, value):
    instance = read(config)
    assert instance.value == value
    assert list(instance.value) == list(value)
    assert (instance.name, instance.told) == (
        ("key", b"7") if "keyField" in config else ("instance", json.dumps(ROW).encode())
    )


def test_list_stays_a_list():
    assert read({"instanceType": "array"}, [1, 2]).value == [1, 2]


def test_csv_row_becomes_what_is_asked_for():
    columns = ["a", "id", "b"]
    assert read({"instanceType": "array"}, b"1,2,x", "csv", columns).value == [1, 2, "x"]
    assert read({"instanceType": "array", "keyField": "id"}, b"1,2,x", "csv", columns) == Instance(
        b"2", [1, "x"], name="key"
    )
    assert read({"instanceType": "array", "includedFields": ["b", "a"]}, b"1,2,x", "csv", columns).value == ["x", 1]
    assert read({"excludedFields": ["a"]}, b"1,2,x", "csv", columns).value == {"id": 2, "b": "x"}


def test_picture_beside_a_key_is_fetched():
    instance = read({"keyField": "id"}, {"id": "\u00fc", "content": "gs://b/x.jpg"})
    assert (instance.picture, json.loads(instance.told)) == ("gs://b/x.jpg", "\u00fc")


@pytest.mark.parametrize(
    ("config", "line", "message"),
    [
        (
            {"instanceType": "object"},
            [1],
            "the line: must be an object, not a list: instanceConfig has instanceType object",
        ),
        ({"keyField": "id"}, 5, "must be an object, not a number: instanceConfig has keyField"),
        ({"keyField": "none"}, ROW, "instanceConfig.keyField: it has no field 'none'"),
        ({"includedFields": ["a", "c"]}, ROW, "instanceConfig.includedFields: it has no field 'c'"),
        ({"instanceType": "array"}, ROW, "an object's fields have no order: give instanceConfig.includedFields"),
        ({"instanceType": "array"}, 5, "must be an object, not a number"),
    ],
)
def test_line_that_cannot_be_shaped_is_refused(config, line, message):
    with pytest.raises(LineError) as refused:
        read(config, line)
    assert refused.value.code == 3
    assert message in str(refused.value)


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
async def test_output_has_keys(artifact, tmp_path, form):
    (tmp_path / "in.jsonl").write_text('{"k": "a", "v": 1}\n{"v": 2}\n{"k": [3], "v": 3}\n{"k": 4, "b64": "%"}\n')
    out = tmp_path / "out"
    document = make_document(
        out, [(tmp_path / "in.jsonl").as_uri()], outputFormat=form, instanceConfig={"keyField": "k"}
    )
    answering = Answering()
    await Runner(artifact, document).make(workers=answering).run()
    assert [instance for instance, _ in answering.calls] == [{"v": 1}, {"v": 3}]
    expected = [("a", {"v": 1}), ([3], {"v": 3})]
    if form == "jsonl":
        assert read_outputs(out) == [{"key": key, "prediction": value} for key, value in expected]
    elif form == "csv":
        with (out / "predictions_00001.csv").open(newline="") as file:
            head, *rows = csv.reader(file)
        assert head == ["key", "prediction"]
        assert [tuple(map(json.loads, row)) for row in rows] == expected
    else:
        assert read_parquet(out / "predictions_00001.parquet").read_all().column_names == ["key", "prediction"]
    errors = read_outputs(out, "errors")
    assert [line.get("instance", line.get("key")) for line in errors] == [{"v": 2}, 4]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["instanceConfig"] == {"keyField": "k"}


def test_plan_of_a_job_without_it_is_that_of_an_older_worker(tmp_path):
    """Or a job that is renewed after an upgrade would not know its own folder."""
    document = make_document(tmp_path, ["gs://b/in"])
    assert "instanceConfig" not in _describe(Task(Document.model_validate(document), 0), "1")
    with_key = document | {"instanceConfig": {"keyField": "k"}}
    assert _describe(Task(Document.model_validate(with_key), 0), "1")["instanceConfig"]["keyField"] == "k"
