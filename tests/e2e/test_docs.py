"""The documentation's commands: each page's runnable blocks, in order, in one shell, in a namespace of their own."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from cluster.settings import STORAGE_URL
from tests.documents import PAGES, REPOSITORY, find_blocks, name_of


@dataclass(frozen=True)
class Step:
    """Commands, and what the page shows of their output, if it does."""

    commands: str
    shown: str | None


def _find_steps(page):
    blocks = [block for block in find_blocks(page) if block.classes & {"runnable", "output"}]
    return [
        Step(block.text, follower.text if follower and "output" in follower.classes else None)
        for block, follower in pairwise([*blocks, None])
        if "runnable" in block.classes
    ]


STEPS = {name_of(page): steps for page in PAGES if (steps := _find_steps(page))}


@pytest.fixture
def shell(kubectl, tmp_path):
    """The environment of a reader's shell: a kubeconfig that names a namespace, the cluster's addresses, the tools."""
    config = tmp_path / "kubeconfig"
    config.write_text(kubectl("config", "view", "--raw", "--flatten"))
    kubectl("--kubeconfig", str(config), "config", "set-context", "--current", f"--namespace={kubectl.namespace}")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "KUBECONFIG": str(config), "PATH": path, "STORAGE_EMULATOR_HOST": STORAGE_URL}


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS.keys())
def test_commands_of_a_page_do_what_it_says(shell, tmp_path, steps):
    for step, printed in zip(steps, _run(steps, shell, tmp_path), strict=True):
        if step.shown is not None:
            assert re.fullmatch(_make_pattern(step.shown), _squeeze(printed)), f"{step.commands}\n{printed}"


def _run(steps, environment, folder):
    """What each step printed; fails with the step that does."""
    files = [folder / f"{number}.txt" for number in range(len(steps))]
    blocks = [f"exec >'{file}' 2>&1\n{step.commands}" for file, step in zip(files, steps, strict=True)]
    script = "\n".join(["set -euo pipefail", *blocks])
    done = subprocess.run(["bash", "-c", script], env=environment, cwd=REPOSITORY, timeout=400, check=False)
    reached = [file.read_text() for file in files if file.exists()]
    assert done.returncode == 0, f"{steps[len(reached) - 1].commands}\n{reached[-1]}"
    return reached


def _make_pattern(shown):
    """What has to be printed, but for the width of columns; `...` stands for anything within a line."""
    return re.escape(_squeeze(shown)).replace(re.escape("..."), ".*")


def _squeeze(text):
    return "\n".join(" ".join(line.split()) for line in text.strip().splitlines())
