"""Asks a DeployedModel's pods for a prediction, through their Service: weight goes only to what answers."""

import aiohttp

from pierhead_operator import names

_SECONDS = 10.0
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
