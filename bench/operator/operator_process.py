"""The operator as it is, but for the names of Services: they lead to FakePods, for there is no DNS."""

from __future__ import annotations

import socket
from typing import Any

from pierhead_operator.__main__ import main

from bench.operator.fakes import PODS_ADDRESS

_SERVICES = ".svc"


def redirect_services() -> None:
    """From now on, in this process, every Service's name means FakePods' address."""
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        is_service = isinstance(host, str) and host.endswith(_SERVICES)
        return resolve(PODS_ADDRESS if is_service else host, *arguments, **options)

    socket.getaddrinfo = getaddrinfo


if __name__ == "__main__":
    redirect_services()
    main()
