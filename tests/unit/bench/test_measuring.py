"""The bench's pieces, without a server."""

import os
import signal
import sys
import time

import pytest
import torch
import typer
from PIL import Image
from torchvision import transforms

from bench.server import __main__ as program
from bench.server import forms, load, machine, peers, pierhead, processes, raw, triton_app, workshop
from bench.server.forms import Report
from bench.server.measure import Contender, rotate
from bench.server.pictures import make_body, make_jpegs
from bench.server.preprocessing import preprocess
from bench.server.raw_process import CpuLoop, DeviceLoop
from cluster.settings import REPOSITORY


@pytest.fixture(scope="module")
def jpegs():
    return make_jpegs()


def test_pictures_are_several_and_of_about_60_kilobytes(jpegs):
    assert len(set(jpegs)) == len(jpegs) == 8
    assert 55_000 < sum(map(len, jpegs)) / len(jpegs) < 65_000
    assert make_body(jpegs[0]).startswith(b'{"instances": [{"content": "/9j/')


def test_preprocessing_is_pillows_and_torchvisions(jpegs, tmp_path):
    usual = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()])
    for number, jpeg in enumerate(jpegs):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(jpeg)
        with Image.open(path) as image:
            wanted = usual(image.convert("RGB")).int()
        got = preprocess(jpeg)[0].int()
        assert got.shape == (3, 224, 224)
        assert (got - wanted).abs().max() <= 3
        assert (got - wanted).abs().float().mean() < 0.5


def test_device_loop_gives_what_the_cpu_loop_gives(jpegs):
    def network(pictures):
        return pictures.float().mean((2, 3)).repeat(1, 3) + torch.arange(9) / 100

    for batch in (1, 3):
        plain, ahead = CpuLoop(network, batch, jpegs), DeviceLoop(network, batch, jpegs, "cpu", 2)
        for _ in range(6):
            assert ahead.step() == plain.step()


def test_batch_is_in_the_name_of_a_form():
    assert [forms.parse_batch(form) for form in ("eager b1", "aoti b32")] == [1, 32]
    assert forms.list_package_batches("cpu") == [1, 4, 8]


def test_rates_of_processes_add_up_over_the_time_that_each_took():
    reports = [
        Report(pictures=80, seconds=8.0, cpu_seconds=7.2, latencies=[0.1] * 80),
        Report(pictures=84, seconds=8.4, cpu_seconds=8.4, latencies=[0.2] * 20),
    ]
    figures = raw.compute_figures(reports, machine_cpu=2.0)
    assert figures["rate"] == pytest.approx(20)
    assert figures["cpu"] == pytest.approx(1.9)
    assert figures["others_cpu"] == pytest.approx(0.1)
    assert (figures["p50"], figures["p99"]) == (pytest.approx(100), pytest.approx(200))


def test_answers_are_compared_with_the_eager_networks():
    right = Report(classes=[[7, 1], [3, 1]], confidences=[[0.9, 0.1], [0.5, 0.2]])
    body = '{"predictions": [{"ids": ["7"], "displayNames": ["x"], "confidences": [0.88]}], "model": ""}'
    bare = '[{"ids": ["7"], "displayNames": ["x"], "confidences": [0.88]}]'  # of BentoML in batches
    ranked = '{"outputs": [{"name": "confidences", "shape": [1, 2], "data": ["0.88:7:x: y", "0.1:1:z"]}]}'  # of Triton
    for other in (body, bare, ranked):
        figures = load.compare_answers({0: body, 1: other}, right)
        assert figures == {"same_top": 1, "pictures": 2, "largest_difference": pytest.approx(0.38)}
    with pytest.raises(processes.BenchError, match="no prediction"):
        load.compare_answers({0: '{"error": {}}'}, right)


@pytest.mark.parametrize(
    ("line", "form"),
    [
        ('pierhead_model_info{deployed_model_id="a",form="compiled",model="m"} 1.0', "compiled"),
        ('pierhead_model_info{form="eager"} 1', "eager"),
        ('pierhead_model_info{form="compiled"} 0.0', None),
        ('pierhead_model_info{model="m"} 1.0', None),
    ],
)
def test_form_is_read_from_the_metrics(line, form):
    assert pierhead.parse_form(f"# HELP x\n{line}\nother 1.0\n") == form


def test_memory_is_read_in_bytes():
    text = "55d0-7ffe ---p 00000000 00:00 0    [rollup]\nRss:            1000 kB\nPss:             400 kB\n"
    assert processes.parse_rollup(text) == {"Rss": 1_024_000, "Pss": 409_600}


def test_own_memory_and_time_are_found():
    (own,) = processes.memory([os.getpid()])
    assert 0 < own.pss <= own.rss
    assert processes.cpu_seconds([os.getpid()]) > 0
    assert processes.memory([2**22 + 1]) == []


def state(pid):
    fields = processes._stat(pid)
    return fields and fields[0]


@pytest.mark.parametrize("more", ["", ", start_new_session=True"])
def test_program_is_ended_with_all_that_it_started_even_when_it_stands_still(tmp_path, more):
    code = f"import subprocess, time; subprocess.Popen(['sleep', '60']{more}); print(1, flush=True); time.sleep(60)"
    log = tmp_path / "log"
    with processes.running([sys.executable, "-c", code], log=log, environment=os.environ) as started:
        processes.wait_until("it started", lambda: log.read_text() == "1\n", 30)
        pids = started.pids
        assert len(pids) == 2
        started.signal(signal.SIGSTOP)
        processes.wait_until("all stand still", lambda: [state(pid) for pid in pids] == ["T", "T"], 10)
    assert started.process.returncode == -signal.SIGTERM
    processes.wait_until("all are gone", lambda: [state(pid) for pid in pids] == [None, None], 10)


def test_end_of_a_program_is_told_with_its_log(tmp_path):
    command = [sys.executable, "-c", "import sys; sys.exit('no such model')"]
    with processes.running(command, log=tmp_path / "server.log", environment=os.environ) as started:
        started.process.wait(30)
        with pytest.raises(processes.BenchError, match=r"(?s)server ended with status 1.*no such model"):
            started.check_alive()


def test_condition_that_never_holds_is_named():
    begun = time.monotonic()
    with pytest.raises(processes.BenchError, match="the sun rises: not so"):
        processes.wait_until("the sun rises", lambda: False, 0.05)
    assert time.monotonic() - begun >= 0.05


def test_packages_are_for_one_kind_of_processor():
    text = "processor\t: 0\nmodel name\t: A\nflags\t\t: fpu avx512f\nprocessor\t: 1\nmodel name\t: A\n"
    assert workshop.read_cpu(text) == "A\nfpu avx512f"
    assert machine.parse_processor(text) == "A, AVX-512"
    assert workshop.make_key("a") == workshop.make_key("a") != workshop.make_key("b")


def test_environment_of_what_is_measured_has_no_settings_of_the_caller(monkeypatch):
    monkeypatch.setenv("PIERHEAD_WORKERS", "7")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    made = workshop.make_environment({"PIERHEAD_PORT": "0"})
    assert "OMP_NUM_THREADS" not in made
    assert {name for name in made if name.startswith("PIERHEAD_")} == {"PIERHEAD_PORT"}


def list_plans(folder, device, *names):
    packages = {batch: folder / f"b{batch}" for batch in forms.list_package_batches(device)}
    piece = workshop.Workpiece("lite0", folder, packages, [], [], network=folder / "network.xml")
    return peers.list_plans(piece, device, 2, names)


def test_litserve_is_tried_with_its_defaults_and_with_its_best(tmp_path):
    plans = list_plans(tmp_path, "cpu", "litserve")
    assert [plan.settings for plan in plans["litserve default"]] == ["defaults"]
    assert all(plan.form == "eager" for plan in plans["litserve eager"])
    assert all((plan.form, plan.workers, plan.threads) == ("openvino", 2, 1) for plan in plans["litserve openvino"])
    assert all(plan.network == str(tmp_path / "network.xml") for plan in plans["litserve openvino"])
    assert {plan.batch for plan in plans["litserve openvino"]} == {1, 4, 8}


def test_litserve_has_the_compiled_packages_on_a_gpu(tmp_path):
    plans = list_plans(tmp_path, "cuda", "litserve")
    assert list(plans) == ["litserve default", "litserve eager", "litserve aoti"]
    assert {plan.batch for plan in plans["litserve aoti"]} == {1, 8, 32}


def test_bentoml_is_tried_with_and_without_its_batches(tmp_path):
    plans = list_plans(tmp_path, "cpu", "litserve", "bentoml")
    assert list(plans)[-1] == "bentoml openvino"
    assert [plan.settings for plan in plans["bentoml openvino"]] == [
        "workers=2 OMP_NUM_THREADS=1 log_level=warning",
        "workers=2 OMP_NUM_THREADS=1 max_batch_size=4 log_level=warning",
        "workers=2 OMP_NUM_THREADS=1 max_batch_size=8 log_level=warning",
    ]
    assert list_plans(tmp_path, "cpu") == {}


def test_triton_is_tried_with_and_without_its_batches_and_with_fewer_threads(tmp_path):
    (plans,) = list_plans(tmp_path, "cpu", "triton").values()
    assert [plan.settings for plan in plans] == [
        "instance_group.count=2 OMP_NUM_THREADS=1 log_level=warning",
        "instance_group.count=2 OMP_NUM_THREADS=1 max_batch_size=4 log_level=warning",
        "instance_group.count=2 OMP_NUM_THREADS=1 max_batch_size=8 log_level=warning",
        "instance_group.count=2 OMP_NUM_THREADS=1 max_batch_size=4 http-thread-count=2 log_level=warning",
        "instance_group.count=2 OMP_NUM_THREADS=1 max_batch_size=8 http-thread-count=2 log_level=warning",
    ]
    assert "--http-thread-count=2" in triton_app.make_arguments(plans[-1], tmp_path)
    assert not [one for one in triton_app.make_arguments(plans[0], tmp_path) if "thread" in one]


def test_triton_alone_is_asked_in_its_own_protocol(tmp_path):
    plans = [plan for each in list_plans(tmp_path, "cpu", *peers.PEERS).values() for plan in each]
    assert {(plan.peer, plan.path, plan.takes_tensors) for plan in plans} == {
        ("litserve", "/predict", False),
        ("bentoml", "/predict", False),
        ("triton", "/v2/models/classifier/infer", True),
    }


def test_triton_has_one_model_with_an_instance_a_core(tmp_path):
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    alone, batched, *_ = list_plans(tmp_path, "cpu", "triton")["triton openvino"]
    triton_app.write_repository(tmp_path / "models", batched)
    model = tmp_path / "models" / "classifier"
    written = (model / "config.pbtxt").read_text()
    for line in (
        "max_batch_size: 4",
        "dynamic_batching {}",
        "instance_group [{ kind: KIND_CPU count: 2 }]",
        'output [{ name: "confidences" data_type: TYPE_FP32 dims: [2] label_filename: "labels.txt" }]',
        f'parameters [{{ key: "network" value: {{ string_value: "{tmp_path}/network.xml" }} }}]',
    ):
        assert line in written.splitlines()
    assert (model / "labels.txt").read_text() == "cat\ndog\n"
    assert "triton_model" in (model / "1" / "model.py").read_text()
    assert "dynamic_batching" not in triton_app.make_configuration(alone, 2)


def test_triton_finds_the_backend_and_the_program_of_an_instance_in_one_folder(tmp_path):
    for name in (
        "backends/python/libtriton_python.so",
        "python_backend_stubs/3.11/stub",
        "python_backend_stubs/3.9/no",
    ):
        (tmp_path / "triton" / name).parent.mkdir(parents=True)
        (tmp_path / "triton" / name).touch()
    triton_app.link_backend(tmp_path / "linked", tmp_path / "triton", "3.11")
    linked = list((tmp_path / "linked" / "python").iterdir())
    assert {file.name for file in linked} == {"libtriton_python.so", "stub"}
    assert all(file.is_symlink() and file.exists() for file in linked)


@pytest.mark.parametrize(
    ("name", "package"), [("litserve", "litserve"), ("bentoml", "bentoml"), ("triton", "nvidia-pytriton")]
)
def test_each_peer_has_requirements_of_its_own(name, package):
    assert name in peers.PEERS
    locked = (REPOSITORY / "requirements" / f"bench-{name}.txt").read_text()
    assert f"\n{package}==" in locked


def test_rounds_begin_with_another():
    contenders = [Contender(name, dict) for name in "abc"]
    assert ["".join(one.name for one in rotate(contenders, number)) for number in range(4)] == [
        *("abc", "bca", "cab", "abc")
    ]


def test_no_gpu_is_said_so(monkeypatch, capsys):
    monkeypatch.setattr(program, "_has_cuda", lambda: False)
    with pytest.raises(typer.Exit) as stopped:
        program.bench(device=program.Device.cuda)
    assert stopped.value.exit_code == 2
    assert "no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize("name", peers.CPU_PEERS)
def test_peer_of_a_cpu_alone_is_not_measured_on_a_gpu(monkeypatch, capsys, name):
    monkeypatch.setattr(program, "_has_cuda", lambda: True)
    with pytest.raises(typer.Exit) as stopped:
        program.bench(device=program.Device.cuda, peer=[program.Peer(name)])
    assert stopped.value.exit_code == 2
    assert f"{peers.PEERS[name]} serves OpenVINO's network" in capsys.readouterr().err
