"""Metrics: what is counted, under which labels."""

import msgspec
import pytest
from pierhead_server.messages import Reply
from pierhead_server.metrics import Metrics
from pierhead_server.protocol import ServedModel
from prometheus_client.parser import text_string_to_metric_families


@pytest.fixture
def metrics():
    return Metrics(ServedModel("photos-2", "projects/p/locations/l/models/photos", "Photos", "2"))


def read(metrics, name, **labels):
    """A sample's value, or None where there is none."""
    samples = [
        sample.value
        for family in text_string_to_metric_families(metrics.expose().decode())
        for sample in family.samples
        if (sample.name, sample.labels) == (name, labels)
    ]
    return samples[0] if samples else None


def test_requests_are_counted_by_code_and_dialect(metrics):
    for dialect, code in (("vertex", 200), ("vertex", 200), ("oip", 400)):
        with metrics.request(dialect) as outcome:
            assert read(metrics, "pierhead_predict_requests_in_flight") == 1
            outcome.code = code
    assert read(metrics, "pierhead_predict_requests_total", code="200", dialect="vertex") == 2
    assert read(metrics, "pierhead_predict_requests_total", code="400", dialect="oip") == 1
    assert read(metrics, "pierhead_predict_request_duration_seconds_count", dialect="vertex") == 2
    assert read(metrics, "pierhead_predict_requests_in_flight") == 0


def test_request_that_raises_is_an_internal_error(metrics):
    with pytest.raises(ZeroDivisionError), metrics.request("kserve"):
        raise ZeroDivisionError
    assert read(metrics, "pierhead_predict_requests_total", code="500", dialect="kserve") == 1
    assert read(metrics, "pierhead_predict_requests_in_flight") == 0


def test_request_whose_body_comes_is_not_in_flight(metrics):
    with metrics.request("vertex") as outcome:
        outcome.wait_for_body()
        assert read(metrics, "pierhead_predict_requests_in_flight") == 0
        outcome.start -= 1000  # it takes its time
        outcome.go_on()
        assert read(metrics, "pierhead_predict_requests_in_flight") == 1
    assert read(metrics, "pierhead_predict_requests_in_flight") == 0
    assert read(metrics, "pierhead_predict_request_duration_seconds_sum", dialect="vertex") < 1000
    with metrics.request("vertex") as outcome:
        outcome.wait_for_body()
    assert read(metrics, "pierhead_predict_requests_in_flight") == 0


CODES = [(429, "queue_full"), (503, "unavailable"), (413, "too_large"), (408, "too_slow")]


@pytest.mark.parametrize(("code", "reason"), CODES)
def test_rejections_are_counted_by_reason(metrics, code, reason):
    assert read(metrics, "pierhead_predict_requests_rejected_total", reason=reason) == 0
    with metrics.request("vertex") as outcome:
        outcome.code = code
    assert read(metrics, "pierhead_predict_requests_rejected_total", reason=reason) == 1


def test_reply_is_measured_by_stage(metrics):
    reply = Reply(200, b"", instances=3, parse_seconds=0.25, prepare_seconds=0.5, forward_seconds=1.0)
    metrics.observe_reply(msgspec.structs.replace(reply, queue_seconds=2.0, batch=4))
    for stage, seconds in (("parse", 0.25), ("prepare", 0.5), ("forward", 1.0)):
        assert read(metrics, "pierhead_model_duration_seconds_sum", stage=stage) == seconds
    assert read(metrics, "pierhead_queue_duration_seconds_sum") == 2.0
    assert read(metrics, "pierhead_batch_size_sum") == 4
    assert read(metrics, "pierhead_predict_instances_sum") == 3


def test_reply_to_a_wrong_request_cost_no_forward_pass(metrics):
    metrics.observe_reply(Reply(400, b"", parse_seconds=0.25))
    assert read(metrics, "pierhead_model_duration_seconds_count", stage="parse") == 1
    assert read(metrics, "pierhead_model_duration_seconds_count", stage="forward") == 0
    assert read(metrics, "pierhead_predict_instances_count") == 0


def test_form_is_the_models_present_one(metrics):
    labels = {
        "deployed_model_id": "photos-2",
        "model": "projects/p/locations/l/models/photos",
        "model_version_id": "2",
    }
    metrics.set_form("quick")
    metrics.set_form("compiled")
    assert read(metrics, "pierhead_model_info", **labels, form="quick") is None
    assert read(metrics, "pierhead_model_info", **labels, form="compiled") == 1


def test_reason_of_the_quick_form_is_told_while_there_is_one(metrics):
    assert b"\npierhead_model_not_compiled{" not in metrics.expose()
    reasons = ["the model is not converted: it takes int64", "x" * 1000, None]
    metrics.watch_form_reason(lambda: reasons[0])
    assert read(metrics, "pierhead_model_not_compiled", reason="the model is not converted: it takes int64") == 1
    del reasons[0]
    assert read(metrics, "pierhead_model_not_compiled", reason="x" * 300) == 1
    del reasons[0]
    assert b"\npierhead_model_not_compiled{" not in metrics.expose()


def test_lines_that_the_log_lost_are_counted(metrics, monkeypatch):
    assert read(metrics, "pierhead_log_lines_dropped_total") == 0
    monkeypatch.setattr("pierhead_server.metrics.count_dropped", lambda: 3)
    assert read(metrics, "pierhead_log_lines_dropped_total") == 3


def test_queue_is_asked_when_it_is_read(metrics):
    waiting = []
    metrics.watch_queue(waiting.__len__)
    waiting.append("a request")
    assert read(metrics, "pierhead_queue_length") == 1


def test_numbers_that_are_none_are_counted_and_told_of(metrics, caplog):
    assert read(metrics, "pierhead_predict_non_finite_numbers_total") == 0
    metrics.observe_reply(Reply(200, b"", instances=1))
    assert not caplog.messages
    for count in (3, 4):
        metrics.observe_reply(Reply(200, b"", instances=1, non_finite=count))
    assert read(metrics, "pierhead_predict_non_finite_numbers_total") == 7
    assert caplog.messages == ["the model gave 3 numbers that are NaN or Infinity"]
