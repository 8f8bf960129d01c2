"""`python -m bench.server.gpu`: at most eight minutes on a machine with a GPU.

Does the server answer there what it answers on the CPU, in batches, and how fast; then `bench.server --device cuda`,
cut off when the time is over. What is known is written into the folder at once, so that a run that is cut off leaves
what it had. With `--device cpu` it tries itself on a machine without one.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from bench.server import load
from bench.server.client import Job
from bench.server.load import Answers
from bench.server.machine import describe_machine
from bench.server.pierhead import PATH, Plan, Server, start_server
from bench.server.processes import BenchError
from bench.server.workshop import Workpiece, Workshop
from cluster.progress import say
from cluster.settings import Paths

_LIMIT_SECONDS = 480.0
_BENCH_SECONDS = 120.0  # less is not worth a start
_CONNECTIONS = (1, 16, 64)
# Of a confidence: TF32 and other orders of adding up; half precision.
_TOLERANCES = {"float32": 0.01, "bfloat16": 0.1, "float16": 0.05}
_CASES = (
    ("mobilenet_v3_small", "float32"),
    ("lite0", "float32"),  # a program of torch.export
    ("mobilenet_v3_small", "bfloat16"),
    ("mobilenet_v3_small", "float16"),
)


class Result(msgspec.Struct):
    """What one model did on the device."""

    model: str
    precision: str
    form: str | None
    start_seconds: float
    pictures: int
    same_top: int
    largest_difference: float  # of a confidence of the top class
    right: bool
    rates: dict[int, float]  # pictures a second, by connections
    p50: dict[int, float]  # milliseconds
    batch: float  # the mean of the last run


def main() -> None:
    """Exits with 1 where something is wrong, or did not run."""
    arguments = _parse_arguments()
    deadline = time.monotonic() + arguments.limit
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    (output / "machine.json").write_text(json.dumps(describe_machine(arguments.device), indent=1))
    workshop, results = Workshop(Paths.from_environment()), []
    for model, precision in _CASES[: arguments.cases]:
        if time.monotonic() > deadline - arguments.seconds * len(_CONNECTIONS):
            say(f"{model} {precision}: not run: the time is over")
            continue
        results.append(_run_case(workshop, model, precision, arguments))
        (output / "results.json").write_bytes(msgspec.json.format(msgspec.json.encode(results)))
        say(describe(results[-1]))
    if arguments.device == "cuda":
        _run_bench(output, deadline)
    if len(results) < arguments.cases or not all(result.right for result in results):
        sys.exit(1)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench.server.gpu")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--output", type=Path, default=Path("gpu-check"))
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--limit", type=float, default=_LIMIT_SECONDS, help="seconds that all of it may take")
    parser.add_argument("--cases", type=int, choices=range(1, len(_CASES) + 1), default=len(_CASES))
    return parser.parse_args()


def _run_case(workshop: Workshop, model: str, precision: str, arguments: argparse.Namespace) -> Result:
    piece = workshop.prepare_uncompiled(model)
    with start_server(workshop, Plan(piece.artifact, device="cpu", compile=False)) as server:
        server.wait_ready()
        expected = [_predict(server, body) for body in piece.bodies]
    artifact = workshop.set_precision(piece, precision)
    with start_server(workshop, Plan(artifact, device=arguments.device, compile=False)) as server:
        start = server.wait_ready()
        return _measure(server, piece, precision, expected, start, arguments)


def _measure(
    server: Server,
    piece: Workpiece,
    precision: str,
    expected: Sequence[bytes],
    start: float,
    arguments: argparse.Namespace,
) -> Result:
    alone = {number: _predict(server, body) for number, body in enumerate(piece.bodies)}
    same, largest = compare(alone, expected)
    rates, p50, before = {}, {}, (0.0, 0.0)
    for connections in _CONNECTIONS:
        before = _read_batches(server)
        bodies = [str(body) for body in piece.bodies]
        outcome = load.attack(Job(server.port, PATH, bodies, arguments.seconds, connections=connections))
        load.check_all_answered(outcome)
        figures = load.compute_figures(outcome)
        rates[connections], p50[connections] = figures["rate"], figures["p50"]
        together = compare({number: body.encode() for number, body in outcome.answers.items()}, expected)
        same, largest = same + together[0], max(largest, together[1])
    after = _read_batches(server)
    pictures = len(alone) + len(_CONNECTIONS) * len(expected)
    form = server.form()
    right = largest <= _TOLERANCES[precision] and (form == "cuda") == (arguments.device == "cuda")
    batch = (after[0] - before[0]) / max(1.0, after[1] - before[1])
    return Result(
        piece.model, precision, form, start, pictures, same, largest, right and same == pictures, rates, p50, batch
    )


def _predict(server: Server, body: Path) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request("POST", PATH, body.read_bytes(), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
    finally:
        connection.close()
    if answer.status != http.client.OK:
        raise BenchError(f"no prediction: {content[:200]!r}")
    return content


def compare(answers: Mapping[int, bytes], expected: Sequence[bytes]) -> tuple[int, float]:
    """How many pictures have the expected top class, and the largest difference of its confidence."""
    same, largest = 0, 0.0
    for number, body in answers.items():
        (given,) = msgspec.json.decode(body, type=Answers).predictions
        (wanted,) = msgspec.json.decode(expected[number], type=Answers).predictions
        same += given.ids[0] == wanted.ids[0]
        largest = max(largest, abs(given.confidences[0] - wanted.confidences[0]))
    return same, largest


def _read_batches(server: Server) -> tuple[float, float]:
    """The sum and the count of the sizes of batches, over requests."""
    metrics = server.get("/metrics")[1]
    total, count = (
        re.search(rf"^pierhead_batch_size_{part}(?:{{[^}}]*}})? (\S+)$", metrics, re.M) for part in ("sum", "count")
    )
    return (float(total[1]), float(count[1])) if total and count else (0.0, 0.0)


def describe(result: Result) -> str:
    """One line of it."""
    rates = ", ".join(f"{count} connections {rate:.0f}/s" for count, rate in result.rates.items())
    return (
        f"{result.model} {result.precision}: {'right' if result.right else 'WRONG'} in its form {result.form}: "
        f"{result.same_top} of {result.pictures} top classes, a confidence moves by at most "
        f"{result.largest_difference:.4f}; ready in {result.start_seconds:.1f} s; {rates}; "
        f"batches of {result.batch:.1f} at last"
    )


def _run_bench(output: Path, deadline: float) -> None:
    left = deadline - time.monotonic()
    if left < _BENCH_SECONDS:
        say("bench.server: not run: the time is over")
        return
    command = [sys.executable, "-m", "bench.server", "--device", "cuda", "--model", "mobilenet_v3_small"]
    command += ["--only", "saturation", "--rounds", "2", "--seconds", "4", "--json", str(output / "bench.json")]
    with (output / "bench.log").open("wb") as log:
        try:
            subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=left, check=False)
        except subprocess.TimeoutExpired:
            say("bench.server: cut off: the time is over")


if __name__ == "__main__":
    main()
