"""Other people's CRDs, without their programs."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from tests.kube import SYSTEM, Manifest, wait_until


@contextmanager
def installed(*crds: Manifest) -> Iterator[None]:
    """They are in the cluster meanwhile."""
    # A cluster of the caller's own may have them: then it is its to say what their objects are.
    missing = {name: crd for crd in crds if not SYSTEM.get("crd", name := crd["metadata"]["name"])}
    if not missing:
        yield
        return
    SYSTEM.apply(*missing.values())
    try:
        for name in missing:
            # kubectl's own wait fails where a CRD has no conditions yet.
            wait_until(f"{name} is there", partial(_is_established, name), seconds=60)
        yield
    finally:
        SYSTEM("delete", "crd", *missing)


def _is_established(name: str) -> bool:
    return SYSTEM.condition("crd", name, "Established").get("status") == "True"
