"""The releases of Pierhead before this one, as `releases/` keeps them: what upgrades begin with."""

import tarfile
from pathlib import Path

import yaml

from tests.kube import Manifest

REPOSITORY = Path(__file__).parents[1]
FOLDER = REPOSITORY / "releases"


def find_releases() -> list[str]:
    """Their versions, the newest last."""
    versions = [path.name.removeprefix("pierhead-").removesuffix(".tar.gz") for path in FOLDER.glob("*.tar.gz")]
    return sorted(versions, key=lambda version: [int(part) for part in version.split(".")])


def unpack(version: str, folder: Path) -> Path:
    """The release's chart and what its image of the operator and the API is made from, in this folder."""
    with tarfile.open(FOLDER / f"pierhead-{version}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def read_crds(root: Path) -> list[Manifest]:
    """The CRDs that the chart below this folder brings."""
    paths = sorted((root / "charts" / "pierhead" / "files" / "crds").glob("*.yaml"))
    return [yaml.safe_load(path.read_text()) for path in paths]
