"""Triton serving the same OpenVINO network by its Python backend. Run as a program, with a PeerPlan as JSON.

It writes a repository of one model and becomes Triton's own server, which PyTriton's wheel brings. PyTriton itself is
not used: it would ask a Python program over a socket for what an instance of the backend computes by itself.
"""

from __future__ import annotations

import importlib.resources
import os
import sys
import sysconfig
import tempfile
from pathlib import Path

import msgspec

from bench.server.peers import PeerPlan
from bench.server.tensors import INPUT, MODEL, OUTPUT


def make_configuration(plan: PeerPlan, classes: int) -> str:
    """The model's config.pbtxt: one JPEG in, a confidence for each class out; batches form while it computes."""
    return f"""\
backend: "python"
max_batch_size: {plan.batch}
input [{{ name: "{INPUT}" data_type: TYPE_STRING dims: [1] }}]
output [{{ name: "{OUTPUT}" data_type: TYPE_FP32 dims: [{classes}] label_filename: "labels.txt" }}]
instance_group [{{ kind: KIND_CPU count: {plan.workers} }}]
parameters [{{ key: "network" value: {{ string_value: "{plan.network}" }} }}]
{"dynamic_batching {}" if plan.batch > 1 else ""}
"""


def write_repository(folder: Path, plan: PeerPlan) -> None:
    """A repository with the model in its only version."""
    labels = (Path(plan.artifact) / "labels.txt").read_text(encoding="utf-8")
    model = folder / MODEL
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text(make_configuration(plan, len(labels.splitlines())), encoding="utf-8")
    (model / "labels.txt").write_text(labels, encoding="utf-8")
    (model / "1" / "model.py").write_text("from bench.server.triton_model import TritonPythonModel\n", encoding="utf-8")


def link_backend(folder: Path, triton: Path, version: str) -> None:
    """The Python backend as Triton wants it, with the program of an instance, for this version of Python, beside it."""
    (folder / "python").mkdir(parents=True)
    for file in (*(triton / "backends" / "python").iterdir(), *(triton / "python_backend_stubs" / version).iterdir()):
        (folder / "python" / file.name).symlink_to(file)


def make_arguments(plan: PeerPlan, folder: Path) -> list[str]:
    """Of the server, which speaks HTTP alone."""
    return [
        f"--model-repository={folder / 'models'}",
        f"--backend-directory={folder / 'backends'}",
        "--http-address=127.0.0.1",
        f"--http-port={plan.port}",
        "--allow-grpc=false",
        "--allow-metrics=false",
        f"--log-info={str(plan.log_level == 'info').lower()}",
        *([f"--http-thread-count={plan.http_threads}"] if plan.http_threads else []),
    ]


def main(argument: str) -> None:
    plan = msgspec.json.decode(argument, type=PeerPlan)
    triton = Path(str(importlib.resources.files("pytriton"))) / "tritonserver"
    folder = Path(tempfile.mkdtemp())
    write_repository(folder / "models", plan)
    link_backend(folder / "backends", triton, f"{sys.version_info.major}.{sys.version_info.minor}")
    environment = os.environ | {
        # What an instance finds Python by: this environment's interpreter, and its library.
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR")),
    }
    server = str(triton / "bin" / "tritonserver")
    os.execve(server, [server, *make_arguments(plan, folder)], environment)  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1])
