"""Asks pods: a DeployedModel's for a prediction, since weight goes only to what answers, those that are not ready why,
and batch workers how far they are.

A model's own code may answer in a server's place. No redirect is followed: a pod names no other address to ask.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import aiohttp
from pydantic import BaseModel, ValidationError

from pierhead_operator import names
from pierhead_operator.cluster import Key
from pierhead_operator.looks import Limits, Looks
from pierhead_operator.status import PROBE_UNDER_WAY
from pierhead_operator.types import DeployedModel, ShardProgress

_SECONDS = 10.0
# Nearly all answer within this: no look is lost. A worker of the queue waits no longer.
_PATIENCE_SECONDS = 0.25
_LIMITS = Limits(in_all=64, of_a_share=16)
_PAUSE_SECONDS = 2.0  # after a first failure; doubled with each further one
_LONGEST_PAUSE_SECONDS = 60.0
_MOST_REMEMBERED = 10_000
_PROGRESS_SECONDS = 2.0
_SERVER_PORT = 8080
_WORKER_PORT = 8080
_OK, _NOT_FOUND = 200, 404
_MOST_BYTES = 300  # of an answer that a person may want to read
_READINESS_SECONDS = 2.0
_MOST_READINESS_BYTES = 8192


class _Cause(BaseModel):
    message: str


class _Refusal(BaseModel):
    """Google's form of an error."""

    error: _Cause


@dataclass(frozen=True)
class _Answer:
    silence: str | None


class Prober:
    """Asks for predictions of the models' own samples. `answered` is told whose answer is there to be fetched."""

    def __init__(self, session: aiohttp.ClientSession, answered: Callable[[Key], None] = lambda _: None) -> None:
        self._session = session
        self._looks: Looks[Key, _Answer] = Looks(_LIMITS, lambda key: key.namespace, answered)
        self._readiness: Looks[Key, dict[str, str]] = Looks(_LIMITS, lambda key: key.namespace, answered)
        self._words: dict[Key, dict[str, str]] = {}  # of pods that are not ready, by name
        self._failures: dict[Key, tuple[int, str]] = {}  # how many in a row, and the last one's words

    async def ask(self, namespace: str, deployed_model: str) -> str | None:
        """None where the pods answer; else why they do not: what is known while they are asked once more."""
        key = Key(DeployedModel.KIND, namespace, deployed_model)
        answer = await self._looks.ask(key, lambda: self._probe(key), _PATIENCE_SECONDS)
        failures, words = self._failures.get(key, (0, PROBE_UNDER_WAY))
        if answer is None:
            return words
        self._failures.pop(key, None)
        if answer.silence:
            self._failures[key] = failures + 1, answer.silence
            if len(self._failures) > _MOST_REMEMBERED:
                del self._failures[next(iter(self._failures))]
        return answer.silence

    def find_pause(self, namespace: str, deployed_model: str) -> float | None:
        """In how many seconds a DeployedModel's pods are to be asked again: the longer they are silent, the later.

        None while they are being asked: the answer will be told.
        """
        key = Key(DeployedModel.KIND, namespace, deployed_model)
        if self._looks.is_asking(key):
            return None
        failures, _ = self._failures.get(key, (0, ""))
        return min(_PAUSE_SECONDS * 2.0 ** min(max(failures - 1, 0), 16), _LONGEST_PAUSE_SECONDS)

    async def _probe(self, key: Key) -> _Answer:
        return _Answer(await self._predict(f"http://{names.server(key.name)}.{key.namespace}.svc{names.PROBE_PATH}"))

    async def _predict(self, url: str) -> str | None:
        """None where a prediction of the model's sample was answered; else why not."""
        try:
            # A connection of its own each time: one that is kept leads to the same pod, past the Service.
            async with self._session.post(
                url,
                headers={"Connection": "close"},
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=_SECONDS),
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

    async def ask_readiness(self, key: Key, pods: Mapping[str, str]) -> Mapping[str, str]:
        """Why pods (name to IP address) of a DeployedModel are not ready; of who does not say, what it said last."""
        if not pods:
            self._words.pop(key, None)
            return {}
        answer = await self._readiness.ask(key, lambda: self._read_readiness(pods), _PATIENCE_SECONDS)
        said = self._words.pop(key, {}) | (answer or {})
        self._words[key] = {name: said[name] for name in pods if name in said}
        if len(self._words) > _MOST_REMEMBERED:
            del self._words[next(iter(self._words))]
        return self._words[key]

    async def _read_readiness(self, pods: Mapping[str, str]) -> dict[str, str]:
        answers = await asyncio.gather(*map(self._read_refusal, pods.values()))
        return {name: answer for name, answer in zip(pods, answers, strict=True) if answer}

    async def _read_refusal(self, address: str) -> str | None:
        """Why the model server at this IP address says that it is not ready; None where it does not say."""
        url = _locate(address, _SERVER_PORT, names.READINESS_PATH)
        try:
            return _Refusal.model_validate_json(
                await self._get(url, _READINESS_SECONDS, _MOST_READINESS_BYTES)
            ).error.message
        except (TimeoutError, aiohttp.ClientError, ValidationError):
            return None  # it is ready by now, or gone

    async def ask_progress(self, address: str) -> ShardProgress | None:
        """How far the batch worker at this IP address is; None where it does not say."""
        url = _locate(address, _WORKER_PORT, names.PROGRESS_PATH)
        try:
            return ShardProgress.model_validate_json(await self._get(url, _PROGRESS_SECONDS, _MOST_BYTES))
        except (TimeoutError, aiohttp.ClientError, ValidationError):
            return None  # it starts, or ends

    async def _get(self, url: str, seconds: float, most_bytes: int) -> bytes:
        """What a pod answers, whatever its status. A pod may run code of somebody else's: it leads nowhere else."""
        limit = aiohttp.ClientTimeout(total=seconds)
        async with self._session.get(url, allow_redirects=False, timeout=limit) as response:
            return await response.content.read(most_bytes)


def _locate(address: str, port: int, path: str) -> str:
    """The URL of a path at an IP address."""
    return f"http://{f'[{address}]' if ':' in address else address}:{port}{path}"
