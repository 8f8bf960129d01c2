"""What is measured with: artifacts, compiled packages, requests, the peers' environments. Made once, then cached."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from bench.server import forms, pictures
from bench.server.processes import BenchError
from cluster import commands, folders, locks, settings
from cluster.progress import step
from cluster.settings import Paths

MODELS = ("lite0", "mobilenet_v3_small", "resnet50")
_SOURCES = ("networks.py", "preprocessing.py", "pictures.py")
_PACKAGES = ("torch", "torchvision", "efficientnet-lite-pytorch", "numpy", "simplejpeg", "pillow")
_COMPILE_SECONDS = 900


@dataclass(frozen=True)
class Workpiece:
    """One model, ready to be measured."""

    model: str
    artifact: Path
    packages: Mapping[int, Path]  # by batch
    jpegs: list[Path]
    bodies: list[Path]
    network: Path | None = None  # OpenVINO's, for peers on a CPU


@dataclass(frozen=True)
class Workshop:
    """The bench's folder in the cache."""

    paths: Paths

    @property
    def folder(self) -> Path:
        return self.paths.cache / "bench"

    def log(self, name: str) -> Path:
        return self.paths.log(f"bench-{name}")

    def prepare(self, model: str, device: str) -> Workpiece:
        """Makes what is not there yet; raises ClusterError where that fails."""
        piece = self.prepare_uncompiled(model)
        with locks.exclusive(self.paths.locks / "bench"):
            artifact = piece.artifact
            packages = {
                batch: self._compile(model, artifact, batch, device) for batch in forms.list_package_batches(device)
            }
            network = self._convert(model, artifact) if device == "cpu" else None
        return replace(piece, packages=packages, network=network)

    def set_precision(self, piece: Workpiece, precision: str) -> Path:
        """The artifact to be computed in that precision; the folder is made anew each time."""
        if precision == "float32":
            return piece.artifact
        target = self.folder / f"{piece.model}-{precision}"
        with locks.exclusive(self.paths.locks / "bench"):
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(piece.artifact, target)
            text = (target / "model.yaml").read_text(encoding="utf-8")
            (target / "model.yaml").write_text(f"{text.rstrip()}\nprecision: {precision}\n", encoding="utf-8")
        return target

    def prepare_uncompiled(self, model: str) -> Workpiece:
        """The same without packages, which take minutes."""
        with locks.exclusive(self.paths.locks / "bench"):
            jpegs, bodies = pictures.write(self.folder / "pictures")
            return Workpiece(model, self._make_artifact(model, jpegs), {}, jpegs, bodies)

    def _make_artifact(self, model: str, jpegs: list[Path]) -> Path:
        if model == "lite0":
            script = settings.REPOSITORY / "examples" / "photos" / "make_artifacts.py"
            output = self.paths.cache / "artifacts"
            self._run([sys.executable, str(script), "--output", str(output)], "artifacts")
            return output / "1"
        folder = self._choose_folder(f"{model}-artifact", make_key(""))
        if not folder.exists():
            with step(f"making {model}'s artifact"), folders.fresh(self.folder / f".{model}") as fresh:
                made = fresh / "made"
                self._run(_network_command("artifact", model, str(made), *map(str, jpegs)), f"artifact-{model}")
                made.rename(folder)
        return folder

    def _compile(self, model: str, artifact: Path, batch: int, device: str) -> Path:
        folder = self._choose_folder(f"{model}-{device}", make_key(read_cpu()))
        target = folder / f"aoti b{batch}.pt2"
        if not target.exists():
            with step(f"compiling {model} for batches of {batch}"), folders.fresh(self.folder / f".{model}") as fresh:
                made = fresh / "made.pt2"
                command = _network_command("package", model, str(artifact), str(batch), device, str(made))
                self._run(command, f"package-{model}-{batch}", {"TORCHINDUCTOR_CACHE_DIR": str(fresh / "inductor")})
                folder.mkdir(exist_ok=True)
                made.rename(target)
        return target

    def _convert(self, model: str, artifact: Path) -> Path:
        source = (Path(__file__).parent / "openvino_network.py").read_text(encoding="utf-8")
        folder = self._choose_folder(f"{model}-openvino", make_key(source + importlib.metadata.version("openvino")))
        target = folder / "network.xml"
        if not target.exists():
            with step(f"converting {model} for OpenVINO"), folders.fresh(self.folder / f".{model}") as fresh:
                made = fresh / "made"
                made.mkdir()
                program = (sys.executable, "-m", "bench.server.openvino_network")
                self._run([*program, model, str(artifact), str(made / target.name)], f"openvino-{model}")
                made.rename(folder)
        return target

    def _choose_folder(self, name: str, key: str) -> Path:
        """The folder for what has this key; those of other keys are of other versions, and are removed."""
        chosen = self.folder / f"{name}-{key}"
        for old in self.folder.glob(f"{name}-*"):
            if old != chosen:
                shutil.rmtree(old)
        return chosen

    def _run(self, argv: list[str], log: str, more: Mapping[str, str] | None = None) -> None:
        environment = make_environment(more or {})
        commands.run(argv, log=self.log(log), env=environment, cwd=settings.REPOSITORY, timeout=_COMPILE_SECONDS)

    def peer_python(self, peer: str) -> Path:
        """The Python of a peer's own environment, made of its locked requirements; raises BenchError without uv."""
        requirements = settings.REPOSITORY / "requirements" / f"bench-{peer}.txt"
        with locks.exclusive(self.paths.locks / "bench"):
            folder = self._choose_folder(f"peer-{peer}", hashlib.sha256(requirements.read_bytes()).hexdigest()[:12])
            python = folder / "bin" / "python"
            if not (folder / "installed").exists():
                uv = settings.REPOSITORY / ".uv" / "bin" / "uv"
                if not uv.exists():
                    raise BenchError(f"{uv} is not there: `make .uv/installed` makes it")
                with step(f"installing {peer} into an environment of its own"):
                    create = [str(uv), "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(folder)]
                    commands.run(create, log=self.log(f"peer-{peer}"))
                    sync = [str(uv), "pip", "sync", "--quiet", "--python", str(python), "--require-hashes"]
                    commands.run([*sync, str(requirements)], log=self.log(f"peer-{peer}"), timeout=_COMPILE_SECONDS)
                    (folder / "installed").touch()
        return python


def make_key(more: str) -> str:
    """Twelve hexadecimal digits over the code and the packages that decide what is made."""
    digest = hashlib.sha256(more.encode())
    for name in _SOURCES:
        digest.update((Path(__file__).parent / name).read_bytes())
    digest.update(repr([(name, importlib.metadata.version(name)) for name in _PACKAGES]).encode())
    return digest.hexdigest()[:12]


def read_cpu(text: str | None = None) -> str:
    """The processor's name and features: a compiled package is for this kind alone."""
    found = Path("/proc/cpuinfo").read_text() if text is None else text
    return "\n".join(
        match[1] for name in ("model name", "flags") if (match := re.search(rf"^{name}\s*: (.*)$", found, re.M))
    )


def make_environment(more: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment, with nothing in it that sets up a server, torch's threads or Python's bytecode.

    The images have their bytecode compiled; here it is kept by whoever imports first.
    """
    others = ("PIERHEAD_", "OMP_", "MKL_", "KMP_", "OTEL_", "LITSERVE_", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    return kept | {"PYTHONPATH": str(settings.REPOSITORY), **more}


def _network_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "bench.server.networks", *arguments]
