"""What a cluster goes without at first, and who brings it."""

import contextlib

import pytest

from cluster import go_build, images, up
from cluster.settings import Paths


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """One on which nothing is built or started; gives what would have been, in order."""
    done = []
    running = set()

    def start(_, component):
        done.append(f"start {component.name}")
        running.add(component.name)

    def start_afresh(_, tools, beside, *, bare):
        done.append([tool.name for tool in tools])
        done.append([image.name for image in beside])
        running.update(name for name in up.COMPONENTS if name != up.ENFORCER or go_build.KUBE_ROUTER in tools)
        up.READY.touch()

    monkeypatch.setattr(up, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(up, "READY", tmp_path / "ready")
    monkeypatch.setattr(up.host, "check_kind", lambda: None)
    monkeypatch.setattr(up, "read_owner", lambda: Paths(tmp_path))
    monkeypatch.setattr(up, "_refuse_another", lambda _: None)
    monkeypatch.setattr(up, "_has_gateway", lambda _: True)
    monkeypatch.setattr(up, "_start_afresh", start_afresh)
    monkeypatch.setattr(up, "_start", start)
    monkeypatch.setattr(up, "_wait", lambda *_: None)
    monkeypatch.setattr(up.kube, "Api", _Api)
    monkeypatch.setattr(up.addons, "apply", lambda _, *names: done.append(f"apply {' '.join(names)}"))
    monkeypatch.setattr(up.processes, "alive", lambda name: name in running)
    monkeypatch.setattr(up.images, "ensure", lambda _, image: done.append(f"image {image.name}"))
    monkeypatch.setattr(
        up.go_build, "build", lambda _, tools, **__: done.append([f"build {tool.name}" for tool in tools])
    )
    return done


class _Api(contextlib.nullcontext):
    def __enter__(self):
        return self

    def is_ready(self):
        return True


ENFORCE = [["build kube-router"], "apply kube-router", "start kube-router"]
OPERATOR = images.make_pierhead_image("operator")


def test_first_cluster_goes_without_the_enforcer_and_a_later_up_brings_it(machine, tmp_path):
    up.up(enforced=False, beside=[OPERATOR], paths=Paths(tmp_path))
    assert machine == [[tool.name for tool in go_build.FIRST], ["operator"], "image operator"]
    machine.clear()
    up.up(enforced=False, paths=Paths(tmp_path))
    assert machine == []
    up.up(paths=Paths(tmp_path))
    assert machine == ENFORCE
    machine.clear()
    up.up(paths=Paths(tmp_path))
    assert machine == []


def test_cluster_is_enforced_by_default(machine, tmp_path):
    up.up(paths=Paths(tmp_path))
    assert machine == [[tool.name for tool in go_build.TOOLS], []]
