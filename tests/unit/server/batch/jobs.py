"""Jobs small enough to be run many times: real storage, and workers that answer in this process."""

import asyncio
import json

from pierhead_server.batch import run as running
from pierhead_server.batch.allowed import DEFAULT, Allowed
from pierhead_server.batch.document import Document, Task
from pierhead_server.batch.pulse import Pulse
from pierhead_server.errors import InternalError, InvalidArgumentError
from pierhead_server.messages import Reply
from pierhead_server.protocol import Limits, encode_json, parse
from pierhead_server.settings import load_settings
from prometheus_client import CollectorRegistry

# A unit test's files are on this machine's disk.
ANYWHERE = Allowed.parse([*DEFAULT, "file://"])


class Answering:
    """Workers without processes: each prediction is its instance, but of `die`, which kills, and `refuse`."""

    appetite = 8

    def __init__(self):
        self.loaded = asyncio.Event()
        self.loaded.set()
        self.calls = []

    def submit(self, call, *, alone=False):
        future = asyncio.get_running_loop().create_future()
        try:
            request = parse(call, Limits(1))
        except InvalidArgumentError as error:
            future.set_result(_refuse(str(error)))
            return future
        (instance,) = request.instances
        self.calls.append((instance, dict(request.arguments)))
        # Not in the order of the calls: the later ones of every three come first.
        delay = 0.0005 * (3 - len(self.calls) % 3)
        future.get_loop().call_later(delay, self._answer, future, instance)
        return future

    def _answer(self, future, instance):
        if future.done():
            return
        if instance == "die":
            future.set_exception(InternalError("the model's process died of this request (killed by SIGKILL)"))
        elif instance == "refuse":
            future.set_result(_refuse("instances[0].content: no"))
        else:
            seen = instance.get("content") if isinstance(instance, dict) else None
            try:
                future.set_result(Reply(200, encode_json({"predictions": [_measure(seen, instance)]})))
            except InternalError as error:
                future.set_exception(error)


def _measure(content, instance):
    return len(content) if isinstance(content, bytes | str) else instance


def _refuse(message):
    body = {"error": {"code": 400, "message": message, "status": "INVALID_ARGUMENT"}}
    return Reply(400, json.dumps(body).encode())


def make_document(folder, uris, **given):
    """A job's document; `folder` is where its output goes."""
    told = {
        "inputFormat": "jsonl",
        "inputUris": list(uris),
        "outputFormat": "jsonl",
        "outputUri": f"{folder.as_uri() if hasattr(folder, 'as_uri') else folder}",
        "shards": 1,
    }
    return told | given


class Runner:
    """Starts workers of one job, one attempt after another or several at once."""

    def __init__(self, artifact, document, emulator=None, allowed=ANYWHERE):
        self.document = document
        self.settings = load_settings(
            artifact_uri=artifact.as_uri(),
            model="m/photos",
            model_version_id="1",
            storage_emulator_host=emulator,
            batch_allowed_uris=allowed,
        )

    def make(self, shard=0, workers=None):
        """A worker whose artifact is there."""
        task = Task(Document.model_validate(self.document), shard)
        pulse = Pulse(CollectorRegistry())
        worker = running.Worker(self.settings, task, workers or Answering(), pulse)
        worker.fetch()
        return worker

    async def run(self):
        """All shards, one after another; whether the last one found the job done."""
        for shard in range(self.document["shards"]):
            done = await self.make(shard).run()
        return done


def read_outputs(folder, kind="predictions"):
    """The lines of all shards' files, parsed."""
    paths = sorted(folder.glob(f"{kind}_*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_bytes().splitlines()]
