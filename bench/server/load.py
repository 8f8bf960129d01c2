"""Runs the HTTP client as a process of its own, and makes figures of what it saw."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

import msgspec

from bench.server.client import Job, Outcome
from bench.server.forms import Report
from bench.server.processes import BenchError
from bench.server.stats import percentile
from bench.server.workshop import make_environment

_SPARE_SECONDS = 60.0


class Answer(msgspec.Struct):
    """One prediction, in the shape that Vertex AI gives it."""

    ids: list[str]
    confidences: list[float]


class Ranking(msgspec.Struct):
    """The best classes of one picture as Triton gives them, the best first."""

    data: list[str]  # "confidence:index:name"


class Answers(msgspec.Struct):
    """The answer to one request: predictions, or outputs in KServe's V2 protocol."""

    predictions: list[Answer] = []
    outputs: list[Ranking] = []


_ANSWERS: msgspec.json.Decoder[Answers | list[Answer]] = msgspec.json.Decoder(Answers | list[Answer])


def _decode(body: str) -> list[Answer]:
    """Of BentoML, which batches lists alone, the list itself is the answer."""
    answers = _ANSWERS.decode(body)
    if not isinstance(answers, Answers):
        return answers
    return answers.predictions or [_read(ranking) for ranking in answers.outputs]


def _read(ranking: Ranking) -> Answer:
    classes = [text.split(":", 2) for text in ranking.data]
    return Answer([index for _, index, _ in classes], [float(confidence) for confidence, _, _ in classes])


def attack(job: Job) -> Outcome:
    """Sends what `job` says; raises BenchError if the client fails or does not end."""
    limit = job.warmup_seconds + job.seconds + job.wait_seconds + _SPARE_SECONDS
    try:
        done = subprocess.run(
            [sys.executable, "-m", "bench.server.client"],
            input=msgspec.json.encode(job),
            capture_output=True,
            timeout=limit,
            env=make_environment({}),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"the client did not end within {limit:.0f} s") from None
    if done.returncode != 0:
        raise BenchError(f"the client failed: {done.stderr.decode(errors='replace')[-2000:]}")
    return msgspec.json.decode(done.stdout, type=Outcome)


def check_all_answered(outcome: Outcome) -> None:
    """Raises BenchError unless every request was answered with 200: anything else is no measurement."""
    if set(outcome.codes) != {200} or outcome.broken:
        raise BenchError(f"not every request was answered with 200: answers {outcome.codes}, broken {outcome.broken}")


def compute_figures(outcome: Outcome) -> dict[str, float]:
    """Pictures a second, latencies in milliseconds, and who had how much of the CPUs."""
    figures = {
        "rate": outcome.codes.get(200, 0) / outcome.seconds,
        "offered": outcome.offered,
        "late_p99": outcome.late_p99 * 1e3,
        "cpu": outcome.server_cpu,
        "client_cpu": outcome.client_cpu,
        "others_cpu": outcome.others_cpu,
    }
    if outcome.latencies:
        milliseconds = [latency * 1e3 for latency in outcome.latencies]
        figures |= {"p50": percentile(milliseconds, 0.5), "p99": percentile(milliseconds, 0.99)}
    return figures


def compute_refusals(outcome: Outcome) -> dict[str, float]:
    """What an overloaded server refused, and how."""
    answered = sum(outcome.codes.values())
    refused = outcome.codes.get(429, 0)
    return {
        "refused_share": refused / answered if answered else 0.0,
        "retry_after_share": outcome.retry_after / refused if refused else 1.0,
        "refused_p50": outcome.refused_p50 * 1e3,
        "other_codes": answered - refused - outcome.codes.get(200, 0),
        "broken": sum(outcome.broken.values()),
        "unsent": outcome.unsent,
        "connections": outcome.opened,
    }


def compare_answers(answers: Mapping[int, str], wanted: Report) -> dict[str, float]:
    """How many pictures got the top class of the eager network, and the largest difference of its confidence.

    `answers` are by the picture's number. Raises BenchError for one that holds no prediction.
    """
    same, largest = 0, 0.0
    for number, body in answers.items():
        try:
            (prediction,) = _decode(body)
            same += prediction.ids[0] == str(wanted.classes[number][0])
            largest = max(largest, abs(prediction.confidences[0] - wanted.confidences[number][0]))
        except (msgspec.ValidationError, msgspec.DecodeError, ValueError, IndexError):
            raise BenchError(f"no prediction: {body[:200]}") from None
    return {"same_top": same, "pictures": len(answers), "largest_difference": largest}
