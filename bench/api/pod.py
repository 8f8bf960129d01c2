"""What answers predictions in this bench: as little as a server can do."""

from __future__ import annotations

import socket
from typing import Any

import uvicorn

# All of 127.0.0.0/8 is this machine.
HOST, PORT = "127.99.0.2", 8099
URL = f"http://{HOST}:{PORT}"
_ANSWER = b'{"predictions": [1], "deployedModelId": "e0-0"}'
_HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_ANSWER))]


async def answer(_scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Takes the whole body, and answers with the same few bytes each time."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": _ANSWER})


if __name__ == "__main__":
    config = uvicorn.Config(answer, log_config=None, access_log=False, lifespan="off")
    with socket.create_server((HOST, PORT)) as port:
        uvicorn.Server(config).run(sockets=[port])
