"""From a shard's parts to its output files, and from all shards' to `_SUCCESS`. Every step may be done once more."""

import asyncio
import logging
from collections.abc import Iterator

import msgspec

from pierhead_server.batch.chain import Chain
from pierhead_server.batch.document import Task
from pierhead_server.batch.errors import OutputNotWritableError, RefusedError
from pierhead_server.batch.outputs import write_lines, write_predictions
from pierhead_server.batch.parts import split_part
from pierhead_server.batch.plan import Plan
from pierhead_server.batch.shaping import INSTANCE, KEY
from pierhead_server.batch.storage import Storage
from pierhead_server.protocol import ServedModel

logger = logging.getLogger(__name__)

_DELETES = 1000  # objects in one go


class Counts(msgspec.Struct, frozen=True):
    """What became of the lines of a shard, or of all."""

    successful: int
    failed: int


class Finisher:
    """Writes what a job's owner reads. Raises OutputNotWritableError, StorageUnreachableError."""

    def __init__(self, storage: Storage, task: Task, served: ServedModel) -> None:
        self._storage = storage
        self._task = task
        self._served = served
        self._private = f"{task.folder}/.pierhead"
        self._done = f"{self._private}/done/{task.shard:05d}.json"

    async def read_done(self) -> Counts | None:
        """This shard's counts, if its files are there."""
        return await self._read_counts(self._done)

    async def _read_counts(self, uri: str) -> Counts | None:
        try:
            return msgspec.json.decode(await self._storage.read_all(uri), type=Counts)
        except FileNotFoundError:
            return None
        except (RefusedError, msgspec.DecodeError) as error:
            raise OutputNotWritableError(f"{uri}: {error}") from None

    async def finish_shard(self, chain: Chain) -> Counts:
        """Write the shard's files of its whole chain, and say that they are there. Raises GoneError."""
        await self._write_files(chain)
        counts = Counts(chain.successful, chain.failed)
        await self._storage.replace(self._done, msgspec.json.encode(counts))
        return counts

    async def _write_files(self, chain: Chain) -> None:
        loop = asyncio.get_running_loop()

        def read(kind: int) -> Iterator[bytes]:
            """The lines of all parts, in a thread."""
            for start in chain.starts:
                part = asyncio.run_coroutine_threadsafe(chain.read_part(start), loop).result()
                yield from split_part(part)[kind]

        def write() -> None:
            document, number = self._task.document, f"{self._task.shard + 1:05d}"
            form, name = document.output_format, KEY if document.instance_config.key_field else INSTANCE
            with self._storage.writer(f"{self._task.folder}/predictions_{number}.{form}") as sink:
                write_predictions(form, sink, read(0), name)
            if chain.failed:
                with self._storage.writer(f"{self._task.folder}/errors_{number}.jsonl") as sink:
                    write_lines(sink, read(1))

        await asyncio.to_thread(write)

    async def finish_job(self, plan: Plan) -> bool:
        """If all shards are done, say so and clean up; whether they are."""
        # After this shard's own word: of two that end at once, at least one sees both.
        done = await self._storage.list_folder(f"{self._private}/done")
        if len(done) < plan.shards:
            logger.info("%d of %d shards are done", len(done), plan.shards)
            return False
        counts = [await self._read_counts(entry.uri) or Counts(0, 0) for entry in done]
        await self._storage.replace(f"{self._task.folder}/manifest.json", self._make_manifest(plan, counts))
        await self._storage.replace(f"{self._task.folder}/_SUCCESS", b"")
        await self._remove_parts()
        return True

    def _make_manifest(self, plan: Plan, counts: list[Counts]) -> bytes:
        document = self._task.document
        manifest = {
            "model": self._served.model,
            "modelDisplayName": self._served.model_display_name,
            "modelVersionId": self._served.model_version_id,
            "modelParameters": document.model_parameters,
            "instancesFormat": document.input_format,
            "instanceConfig": document.instance_config.model_dump(by_alias=True, exclude_defaults=True),
            "predictionsFormat": document.output_format,
            "inputFiles": [{"uri": file.uri, "bytes": file.size} for file in plan.files],
            "shards": counts,
            "successful": sum(count.successful for count in counts),
            "failed": sum(count.failed for count in counts),
        }
        return msgspec.json.format(msgspec.json.encode(manifest), indent=2)

    async def _remove_parts(self) -> None:
        for shard in range(self._task.document.shards):
            parts = [entry.uri for entry in await self._storage.list_folder(f"{self._private}/parts/{shard:05d}")]
            for index in range(0, len(parts), _DELETES):
                await self._storage.delete(parts[index : index + _DELETES])
