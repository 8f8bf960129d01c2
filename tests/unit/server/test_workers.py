"""The model process: fed, refused, killed, started anew. The process is real, the model is not."""

import asyncio
import contextlib
import os
import signal

import pytest
from pierhead_server import workers as workers_module
from pierhead_server.artifact import Artifact, read_artifact
from pierhead_server.errors import (
    ArtifactInvalidError,
    ArtifactNotFoundError,
    InternalError,
    InvalidArgumentError,
    ModelProcessDiedError,
    QueueFullError,
    UnavailableError,
)
from pierhead_server.metrics import Metrics
from pierhead_server.protocol import Parameters, Picture, PredictRequest, ServedModel
from pierhead_server.workers import Workers, thread_count

from tests.unit.server.model_processes import DIE, REFUSE, WAIT_FOR, dies_loading, misfit, obedient

DEADLINE_SECONDS = 30


@pytest.fixture(autouse=True)
def quick_back_off(monkeypatch):
    monkeypatch.setattr(workers_module, "FIRST_BACKOFF_SECONDS", 0.01)


@pytest.fixture
def artifact(torchvision_folder) -> Artifact:
    return read_artifact(torchvision_folder)


def make_workers(process_main=obedient, queue_size=8):
    metrics = Metrics(ServedModel("photos-1", "photos", "Photos", "1"))
    return Workers(queue_size=queue_size, max_image_pixels=10**6, metrics=metrics, process_main=process_main)


def request(told=b"answer"):
    return PredictRequest((Picture(told, "content"),), Parameters())


async def until(condition):
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not condition():  # noqa: ASYNC110 - it is a process that changes it
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def running(workers, artifact):
    """Workers with their model loaded."""
    task = asyncio.create_task(workers.run(lambda: artifact))
    try:
        await until(lambda: not workers.not_ready)
        async with asyncio.timeout(DEADLINE_SECONDS):
            yield task
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_requests_are_answered_in_turn(artifact):
    workers = make_workers()
    async with running(workers, artifact):
        answers = await asyncio.gather(*(workers.submit(request()) for _ in range(5)))
    assert len({ranking[0][0] for (ranking,) in answers}) == 1  # by one process, whose pid it is


async def test_a_refused_request_fails_alone(artifact):
    workers = make_workers()
    async with running(workers, artifact):
        good, bad, after = (workers.submit(request(told)) for told in (b"answer", REFUSE, b"answer"))
        with pytest.raises(InvalidArgumentError, match="refused"):
            await bad
        assert await good
        assert await after


async def test_queue_is_bounded(artifact, tmp_path):
    workers = make_workers(queue_size=2)
    gate = tmp_path / "gate"
    async with running(workers, artifact):
        computing = workers.submit(request(WAIT_FOR + os.fsencode(gate)))
        await until(lambda: not workers._queue.qsize())
        waiting = [workers.submit(request()) for _ in range(2)]
        with pytest.raises(QueueFullError, match="2 requests are waiting"):
            workers.submit(request())
        gate.touch()
        assert await asyncio.gather(computing, *waiting)
        assert await workers.submit(request())


async def test_request_whose_caller_has_gone_is_dropped(artifact, tmp_path):
    workers = make_workers()
    gate = tmp_path / "gate"
    async with running(workers, artifact):
        computing = workers.submit(request(WAIT_FOR + os.fsencode(gate)))
        gone = workers.submit(request(DIE))  # would kill the process if it were given to it
        after = workers.submit(request())
        gone.cancel()
        gate.touch()
        assert await computing == await after


async def test_caller_that_goes_meanwhile_harms_nobody(artifact, tmp_path):
    workers = make_workers()
    gate = tmp_path / "gate"
    async with running(workers, artifact):
        computing = workers.submit(request(WAIT_FOR + os.fsencode(gate)))
        await until(lambda: not workers._queue.qsize())
        computing.cancel()
        gate.touch()
        assert await workers.submit(request())


async def test_death_fails_one_request_and_is_survived(artifact):
    workers = make_workers()
    async with running(workers, artifact):
        before, fatal, after = (workers.submit(request(told)) for told in (b"answer", DIE, b"answer"))
        with pytest.raises(InternalError, match=r"died of this request \(SIGKILL: most likely out of memory"):
            await fatal
        assert await before != await after  # another pid
        assert workers.not_ready is None


async def test_idle_death_is_noticed(artifact):
    workers = make_workers()
    async with running(workers, artifact):
        (((pid, _),),) = await workers.submit(request())
        os.kill(pid, signal.SIGSEGV)
        await until(lambda: workers.not_ready)
        assert workers.not_ready == "the model's process died (SIGSEGV) and is starting anew"
        (((another, _),),) = await workers.submit(request())
        assert another != pid


async def test_deaths_in_a_row_end_it(artifact):
    workers = make_workers()
    async with running(workers, artifact) as task:
        fatal = [workers.submit(request(DIE)) for _ in range(workers_module.RESTARTS + 1)]
        waiting = workers.submit(request())
        with pytest.raises(ModelProcessDiedError, match="SIGKILL: most likely out of memory, 4 times in a row"):
            await task
        assert all(isinstance(job.exception(), InternalError) for job in fatal)
        with pytest.raises(UnavailableError, match="4 times in a row"):
            await waiting
        with pytest.raises(UnavailableError, match="4 times in a row"):
            workers.submit(request())
        assert workers.failure


async def test_an_answer_between_deaths_starts_the_count_anew(artifact):
    workers = make_workers()
    async with running(workers, artifact):
        for _ in range(workers_module.RESTARTS + 2):
            fatal, good = workers.submit(request(DIE)), workers.submit(request())
            with pytest.raises(InternalError):
                await fatal
            assert await good


async def test_artifact_that_the_process_refuses_ends_it(artifact):
    workers = make_workers(misfit)
    with pytest.raises(ArtifactInvalidError, match="weights: do not fit"):
        await workers.run(lambda: artifact)
    assert workers.failure == "weights: do not fit"


async def test_death_while_loading_ends_it(artifact):
    with pytest.raises(ModelProcessDiedError, match="SIGKILL: most likely out of memory, while loading the model"):
        await make_workers(dies_loading).run(lambda: artifact)


async def test_failed_fetch_ends_it():
    def fetch():
        raise ArtifactNotFoundError("nothing is there")

    workers = make_workers()
    with pytest.raises(UnavailableError, match="the model is loading"):
        workers.submit(request())
    with pytest.raises(ArtifactNotFoundError):
        await workers.run(fetch)


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({}, None),
    ],
)
def test_cpu_limit_is_read_from_the_cgroup(files, cpus, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert workers_module._cpu_quota(tmp_path) == (workers_module.sys.maxsize if cpus is None else cpus)


@pytest.mark.parametrize(("variable", "threads"), [("3", 3), ("0", 1)])
def test_omp_num_threads_is_obeyed(variable, threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert thread_count() == threads


def test_threads_are_no_more_than_the_cpus(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert 1 <= thread_count() <= len(os.sched_getaffinity(0))
