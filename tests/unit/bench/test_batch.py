"""The bench of the batch worker: its pieces, and from figures to goals."""

import contextlib
import os
import time

import httpx
import pytest
from pierhead_server.batch.parts import Record, encode_part
from pierhead_server.batch.plan import Position

from bench.batch import measure, raw, report
from bench.batch.cpus import list_cpus, pin
from bench.batch.storage import start_storage
from bench.batch.worker import Job, Mark, Stretch, Worker, compare_chunk, compute_figures
from bench.server.forms import Report
from bench.server.pictures import make_jpegs
from bench.server.processes import BenchError
from bench.server.raw_process import CpuLoop, Files
from bench.server.stats import Records, Spread
from bench.server.workshop import Workpiece, Workshop
from cluster.settings import Paths

MODEL = "mobilenet_v3_small"
RAW = "raw channels-last b8"


def make_records(**sections):
    """section={contender: the rates of its rounds}"""
    records = Records()
    for section, contenders in sections.items():
        for name, rates in contenders.items():
            for number, rate in enumerate(rates):
                records.add(MODEL, section, name, number, {"rate": rate})
    return records


def write_chunks(folder, seconds, *, lines=2, failed=0):
    """Committed chunks, one at each of these times."""
    folder.mkdir(exist_ok=True)
    told = b'{"content":"file:///pictures/%d.jpg"}'
    outcome = b'{"ids":["%d"],"confidences":[0.5]}'
    for number, second in enumerate(seconds):
        records = [Record(told % line, outcome % line, ok=line >= failed) for line in range(lines)]
        path = folder / f"00000-{number:015d}.jsonl"
        path.write_bytes(encode_part(records, Position(0, number + 1)))
        os.utime(path, (second, second))


@pytest.fixture
def worker(tmp_path):
    return Worker(None, begun=90.0, folder=tmp_path / "parts")


def test_rate_is_that_of_the_chunks_behind_the_first(worker):
    write_chunks(worker.folder, [100.0, 101.0, 103.0, 104.0])
    stretch = Stretch(worker, Mark(1, 0.5, 1.0), Mark(4, 0.8, 4.3))
    figures = compute_figures([stretch], machine_cpu=1.5)
    assert figures["rate"] == pytest.approx(6 / 4)
    assert figures["listener_ms"] == pytest.approx(0.3 / 6 * 1e3)
    assert figures["model_ms"] == pytest.approx(3.0 / 6 * 1e3)
    assert figures["start_seconds"] == pytest.approx(10)
    assert figures["others_cpu"] == pytest.approx(1.5 - 3.3 / 4)


def test_rates_of_workers_add_up(worker):
    write_chunks(worker.folder, [100.0, 101.0, 102.0])
    stretch = Stretch(worker, Mark(1, 0.0, 0.0), Mark(3, 0.1, 1.0))
    assert compute_figures([stretch, stretch], machine_cpu=2.0)["rate"] == pytest.approx(4)


def test_line_that_failed_is_no_measurement(worker):
    write_chunks(worker.folder, [100.0, 101.0], failed=1)
    with pytest.raises(BenchError, match="1 lines failed"):
        _ = Stretch(worker, Mark(1, 0, 0), Mark(2, 0, 1)).lines


def test_predictions_are_compared_with_the_eager_networks(worker):
    write_chunks(worker.folder, [100.0])
    right = Report(classes=[[0], [7]], confidences=[[0.4], [0.5]])
    figures = compare_chunk(worker.list_chunks()[0], right)
    assert figures == {"same_top": 1, "pictures": 2, "largest_difference": pytest.approx(0.1)}


def test_worker_is_told_its_shard(tmp_path):
    job = Job(tmp_path, tmp_path / "list.txt", tmp_path / "out", shards=2, settings={"PIERHEAD_COMPILE": "false"})
    told = job.make_environment(1)
    assert told["JOB_COMPLETION_INDEX"] == "1"
    assert '"shards": 2' in told["PIERHEAD_BATCH_JOB"]
    assert told["PIERHEAD_WORKERS"] == "1"
    assert told["PIERHEAD_COMPILE"] == "false"


def test_pictures_are_read_from_disk_each_time(tmp_path):
    path = tmp_path / "0.jpg"
    path.write_bytes(make_jpegs()[0])
    loop = CpuLoop(lambda pictures: pictures.float().mean((2, 3)).repeat(1, 3), 1, Files([path]))
    assert loop.step()
    path.unlink()
    with pytest.raises(FileNotFoundError):
        loop.step()


def test_each_form_of_the_raw_loop_is_of_one_kind():
    kinds = [form for kind in raw.KINDS for form in raw.list_kind(kind)]
    assert sorted(kinds) == sorted(raw.FORMS)
    assert raw.list_kind("aoti") == ["aoti b1", "aoti b4", "aoti b8"]
    assert {form.rpartition(" ")[0] for form in raw.list_kind("eager")} == {"eager", "channels-last"}


def test_raw_loop_runs_where_it_should(tmp_path, monkeypatch):
    piece = Workpiece(MODEL, tmp_path, {}, [tmp_path / "0.jpg"], [])
    started = []
    monkeypatch.setattr(raw, "running", lambda command, **_: started.append(command) or contextlib.nullcontext())
    with raw.start_raw_loop(Workshop(Paths(tmp_path)), piece, ["0", "1"]):
        pass
    assert [command[:3] for command in started] == [["taskset", "--cpu-list", cpu] for cpu in "01"]
    assert all("disk" in command for command in started)


def test_command_is_kept_on_its_cpus():
    assert pin(["x", "-y"], "0,1") == ["taskset", "--cpu-list", "0,1", "x", "-y"]
    assert [int(cpu) for cpu in list_cpus()] == sorted(os.sched_getaffinity(0))


def test_storage_answers_as_late_as_it_should(tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "0.jpg").write_bytes(b"picture")
    workshop = Workshop(Paths(tmp_path))
    with start_storage(workshop, tmp_path / "files", 0.05, list_cpus()[0]) as storage, httpx.Client() as client:
        begun = time.monotonic()
        answers = [client.get(f"{storage.address}/{name}.jpg") for name in (0, 1)]
        assert time.monotonic() - begun >= 0.1
    assert [(answer.status_code, answer.content) for answer in answers] == [(200, b"picture"), (404, b"")]


def test_list_names_the_pictures_again_and_again(tmp_path):
    assert (
        measure.write_list(tmp_path, ["file:///a", "file:///b"], 3).read_text() == "file:///a\nfile:///b\nfile:///a\n"
    )
    small = measure.write_small(tmp_path)
    assert len({path.read_bytes() for path in small}) == len(small)


def test_worker_is_judged_by_the_best_eager_loop():
    records = make_records(rate={RAW: [100, 200], "raw openvino b8": [300, 300], report.WORKER: [95, 188]})
    (goal,) = report.compute_goals(records, [MODEL])
    assert goal.what == "worker, one core, to the raw loop (channels-last b8)"
    assert (goal.seen, goal.held) == ("0.94 (0.94 to 0.95)", False)


@pytest.mark.parametrize(
    ("one", "each"),
    [(report.WORKER, report.WORKERS_EACH), (report.WORKER_COMPILED, report.WORKERS_COMPILED)],
)
@pytest.mark.parametrize(("rate", "held"), [(191, True), (189, False)])
def test_two_workers_are_judged_by_one(rate, held, one, each):
    contenders = {RAW: [100], f"{RAW}{report.RAW_EACH}": [195], one: [100], each: [rate]}
    records = make_records(scale=contenders)
    (goal,) = report.compute_goals(records, [MODEL])
    assert goal.held is held
    (table,) = report.make_tables(records, [MODEL])
    assert [row[3] for row in table.rows] == [
        "",
        "1.95 (1.95 to 1.95)",
        "",
        f"{rate / 100:.2f} ({rate / 100:.2f} to {rate / 100:.2f})",
    ]


@pytest.mark.parametrize(("rate", "held"), [(90, True), (89, False)])
def test_far_storage_may_cost_a_tenth(rate, held):
    records = make_records(latency={report.NOT_DELAYED: [100], report.DELAYED: [rate]})
    assert [goal.held for goal in report.compute_goals(records, [MODEL])] == [held]


def test_memory_is_judged_by_that_of_shorter_inputs():
    records = Records()
    measured = ((10_000, 60, 500), (300_000, 90, 500), (1_000_000, 92, 560))
    for name, (lines, listener, every) in zip(report.LENGTHS, measured, strict=True):
        figures = {"listener_pss": listener, "listener_rss": listener, "pss": every, "rss": every}
        records.add("predictor", "memory", name, 0, {"lines": lines, "rate": 1.0, **figures})
    goals = report.compute_goals(records, [])
    assert [goal.held for goal in goals] == [False, False, True, True]
    assert goals[0].what == "all processes, PSS: 1,000,000 lines, to 10,000"


def test_every_section_has_its_table():
    figures = {"rate": 1.0, "listener_ms": 1.0, "model_ms": 1.0, "start_seconds": 1.0, "cpu": 1.0, "others_cpu": 0.0}
    records = Records()
    for section in ("forms", "rate", "scale", "latency"):
        for name in (RAW, "raw openvino b8", report.WORKER, report.DELAYED):
            records.add(MODEL, section, name, 0, figures)
    records.add("predictor", "memory", "short input", 0, {"lines": 1.0, "rate": 1.0})
    tables = report.make_tables(records, [MODEL, "resnet50"])
    assert len(tables) == 5
    assert all(len(row) == len(table.columns) for table in tables for row in table.rows)
    assert report.make_tables(Records(), [MODEL]) == []
    assert records.ratio(MODEL, "rate", report.WORKER, report.find_raw(records, MODEL, "rate"), "rate") == Spread(
        1, 1, 1
    )
