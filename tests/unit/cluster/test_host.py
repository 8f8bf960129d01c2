"""What a machine is told when it does not do, and what is read of its configuration."""

import os
import sys
from pathlib import Path

import pytest

from cluster import host, settings
from cluster.errors import ClusterError
from cluster.settings import Paths

DEB822 = """\
Types: deb-src
URIs: http://source.invalid/debian
Suites: bookworm
Components: main

Types: deb
# a comment
URIs: http://mirror.invalid/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""


@pytest.mark.parametrize(
    ("text", "mirror"),
    [
        (DEB822, "http://mirror.invalid/debian"),
        ("deb http://a.invalid/debian bookworm main\n", "http://a.invalid/debian"),
        ("deb [arch=amd64 signed-by=/k] http://a.invalid/d bookworm contrib main\n", "http://a.invalid/d"),
        ("# deb http://a.invalid/debian bookworm main\n", None),
        ("deb http://a.invalid/debian-security bookworm-security main\n", None),
        ("deb http://a.invalid/debian trixie main\n", None),
        ("", None),
    ],
)
def test_parse_mirror_takes_the_suites_own_source(text, mirror):
    assert host.parse_mirror(text, "bookworm") == mirror


def test_find_debian_mirror_reads_every_sources_file(tmp_path):
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text("# moved\n")
    (tmp_path / "sources.list.d/a.list").write_text("deb http://other.invalid stable main\n")
    (tmp_path / "sources.list.d/debian.sources").write_text(DEB822)
    assert host.find_debian_mirror({}, tmp_path) == "http://mirror.invalid/debian"
    with pytest.raises(ClusterError, match="no source of Debian's `trixie`"):
        host.find_debian_mirror({"VERSION_CODENAME": "trixie"}, tmp_path)


@pytest.mark.parametrize(
    ("text", "version"),
    [("go1.26.8", (1, 26, 8)), ("go1.27", (1, 27, 0)), ("go1.27rc1", (1, 27, 0)), ("devel", ())],
)
def test_parse_go_version(text, version):
    assert host.parse_go_version(text) == version


def test_find_missing_counts_only_what_is_installed():
    listing = "runc installed\nbuildah config-files\nlibc6 installed\nlibc6 installed\n"
    assert host.find_missing(["runc", "buildah", "nftables"], listing) == ["buildah", "nftables"]


@pytest.fixture
def debian(monkeypatch):
    monkeypatch.setattr(host, "read_os_release", lambda: {"ID": "debian"})
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def test_a_debian_with_root_will_do(debian):
    host.check_kind()


def test_another_system_is_named(monkeypatch, debian):
    monkeypatch.setattr(host, "read_os_release", lambda: {"ID": "fedora", "PRETTY_NAME": "Fedora Linux 44"})
    with pytest.raises(ClusterError, match="needs Debian 12 or newer, and this is Fedora Linux 44"):
        host.check_kind()


def test_another_kernel_is_named(monkeypatch, debian):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(host, "read_os_release", dict)
    with pytest.raises(ClusterError, match="this is darwin"):
        host.check_kind()


def test_another_user_is_told_to_be_root(monkeypatch, debian):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ClusterError, match="run it as root"):
        host.check_kind()


def test_too_little_disk_says_how_much_and_where(monkeypatch, tmp_path):
    monkeypatch.setattr(settings, "DISK_NEEDED_WARM_GB", 10**6)
    with pytest.raises(ClusterError, match=rf"1000000 GB of disk are needed in {tmp_path}/no/such, and \d+ are free"):
        host.check_room(Paths(tmp_path / "no/such"), cached=True)


def test_too_little_memory_says_how_much(monkeypatch, tmp_path):
    monkeypatch.setattr(settings, "MEMORY_NEEDED_GB", 10**6)
    with pytest.raises(ClusterError, match=r"needs 1000000 GB of memory, and this machine has \d+\.\d"):
        host.check_room(Paths(tmp_path), cached=True)


def test_no_go_and_an_old_go_are_told_what_is_needed(monkeypatch):
    monkeypatch.setattr(host.shutil, "which", lambda _: None)
    with pytest.raises(ClusterError, match=r"no Go found .* install Go 1\.\d+\.\d+ or newer"):
        host.find_go()
    monkeypatch.setattr(host.shutil, "which", lambda _: "/opt/go")
    monkeypatch.setattr(host.commands, "output", lambda _: "go1.19.8\n")
    with pytest.raises(ClusterError, match=r"/opt/go is go1\.19\.8: install Go"):
        host.find_go()


def test_read_os_release(tmp_path):
    path = tmp_path / "os-release"
    path.write_text('ID=debian\nPRETTY_NAME="Debian GNU/Linux 12"\n')
    assert host.read_os_release(path) == {"ID": "debian", "PRETTY_NAME": "Debian GNU/Linux 12"}
    assert host.read_os_release(Path("/no/such/file")) == {}
