"""Asks pods: a DeployedModel's for a prediction, since weight goes only to what answers, and batch workers how far
they are.
"""

import aiohttp
from pydantic import ValidationError

from pierhead_operator import names
from pierhead_operator.types import ShardProgress

_SECONDS = 10.0
_PROGRESS_SECONDS = 2.0
_WORKER_PORT = 8080
_OK, _NOT_FOUND = 200, 404
_MOST_BYTES = 300  # of an answer that a person may want to read


class Prober:
    """Asks for predictions of the models' own samples."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def ask(self, namespace: str, deployed_model: str) -> str | None:
        """None where the pods answer; else why they do not."""
        url = f"http://{names.server(deployed_model)}.{namespace}.svc{names.PROBE_PATH}"
        try:
            # A connection of its own each time: one that is kept leads to the same pod, past the Service.
            async with self._session.post(
                url, headers={"Connection": "close"}, timeout=aiohttp.ClientTimeout(total=_SECONDS)
            ) as response:
                # A server of before this route: that it is ready must do.
                if response.status in (_OK, _NOT_FOUND):
                    return None
                text = (await response.content.read(_MOST_BYTES)).decode(errors="replace")
                return f"a prediction through the Service was answered with {response.status}: {text}"
        except TimeoutError:
            return f"a prediction through the Service was not answered within {_SECONDS:.0f} s"
        except aiohttp.ClientError as error:
            return f"a prediction through the Service failed: {error}"

    async def ask_progress(self, address: str) -> ShardProgress | None:
        """How far the batch worker at this IP address is; None where it does not say."""
        host = f"[{address}]" if ":" in address else address
        try:
            async with self._session.get(
                f"http://{host}:{_WORKER_PORT}{names.PROGRESS_PATH}",
                timeout=aiohttp.ClientTimeout(total=_PROGRESS_SECONDS),
            ) as response:
                return ShardProgress.model_validate_json(await response.content.read(_MOST_BYTES))
        except (TimeoutError, aiohttp.ClientError, ValidationError):
            return None  # it starts, or ends
