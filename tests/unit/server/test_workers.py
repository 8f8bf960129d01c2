"""The model's processes: fed, refused, killed, exchanged, started anew. The processes are real, the model is not."""

import asyncio
import contextlib
import os
import signal
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec
import pytest
from pierhead_server import workers as workers_module
from pierhead_server.batching import HEAVY_PIXELS, MOST_PASSES, BatchPolicy
from pierhead_server.control import Load
from pierhead_server.deaths import FIRST_QUIET_SECONDS
from pierhead_server.errors import (
    ArtifactInvalidError,
    ArtifactNotFoundError,
    DeadlineExceededError,
    DriverTooOldError,
    InternalError,
    ModelProcessDiedError,
    QueueFullError,
    RequestBytesFullError,
    UnavailableError,
)
from pierhead_server.launch import launch
from pierhead_server.messages import Call
from pierhead_server.metrics import Metrics
from pierhead_server.protocol import Limits, ServedModel
from pierhead_server.workers import QUICK_SECONDS, RESTARTS, Pool, Workers

from tests.unit.server.conftest import children, is_alive
from tests.unit.server.model_processes import (
    DIE,
    LEAVE,
    REFUSE,
    SAY,
    SIGNATURE,
    WAIT_FOR,
    Obedient,
    make_parts,
)

DEADLINE_SECONDS = 30
SERVED = ServedModel("photos-1", "photos", "Photos", "1")


@pytest.fixture(autouse=True)
def quick_back_off(monkeypatch):
    monkeypatch.setattr(workers_module, "FIRST_BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(workers_module, "PROOF_SECONDS", 0.01)


def make_load(folder):
    return Load(str(folder), SERVED, Limits(128), max_image_pixels=10**6)


ONE_BY_ONE = BatchPolicy()  # each worker holds what it computes and no more
AHEAD = BatchPolicy(depth=2, surplus=1)
GPU = BatchPolicy(partial=True, depth=2, delay=0.005)


@dataclass(frozen=True)
class FixedPool(Pool):
    """Batches as a test wants them, whatever suits a CPU."""

    how: BatchPolicy = ONE_BY_ONE

    def policy(self, batch, **_):
        return replace(self.how, size=batch)


class Watched(Workers):
    """Workers, and what their metrics say. Without `how` their calls are batched as on a CPU."""

    def __init__(
        self,
        *command,
        workers=1,
        queue_size=16,
        answer_seconds=DEADLINE_SECONDS,
        how=ONE_BY_ONE,
        pixels=10**9,
        most_bytes=10**9,
    ):
        self.metrics = Metrics(SERVED)
        self.now = 0.0  # by the clock that deaths are judged by
        given = (workers, queue_size, answer_seconds)
        pool = FixedPool(*given, how=how) if how else Pool(*given)
        pool = replace(pool, pixels_in_flight=pixels, most_bytes=most_bytes)
        process = (sys.executable, "-m", "tests.unit.server.model_processes", *map(str, command or ("obedient",)))
        super().__init__(pool, self.metrics, partial(launch, process), lambda: self.now)

    def metric(self, name):
        lines = [line.rpartition(" ") for line in self.metrics.expose().decode().splitlines()]
        return next(float(value) for key, _, value in lines if key == name)

    @property
    def fork_server(self):
        """Its pid."""
        return self._server._process.pid

    @property
    def batches(self):
        """How many calls are in each batch in each worker's hands."""
        return [[len(batch.jobs) for batch in worker.in_hand] for worker in self._workers.values()]

    def be_patient(self):
        """Workers get all the time that a busy machine takes."""
        self._pool = replace(self._pool, answer_seconds=DEADLINE_SECONDS)

    def ask(self, told=b"answer"):
        return self.submit(Call("raw", told))

    def block(self, gate):
        """A call that is computed until the file `gate` is there."""
        return self.ask(WAIT_FOR + os.fsencode(gate))


@pytest.fixture
def gate(tmp_path):
    return tmp_path / "gate"


def read(reply):
    return msgspec.json.decode(reply.body)


async def pids(futures):
    return [read(reply)["pid"] for reply in await asyncio.gather(*futures)]


async def until(condition, seconds=DEADLINE_SECONDS):
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - it is a process that changes it
            await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def running(workers, make_load=make_load, seconds=DEADLINE_SECONDS):
    """Workers with their model loaded and all of them warm."""
    task = asyncio.create_task(workers.run(lambda: Path("/"), make_load))
    try:
        await until(lambda: task.done() or workers.metric("pierhead_workers") == workers._pool.workers, seconds)
        async with asyncio.timeout(seconds):
            yield task
    finally:
        task.cancel()
        await asyncio.wait({task})


# Answers


async def test_calls_are_answered_in_turn():
    async with running(workers := Watched()):
        order = []
        futures = [workers.ask() for _ in range(10)]
        for number, future in enumerate(futures):
            future.add_done_callback(lambda _, number=number: order.append(number))
        assert len(set(await pids(futures))) == 1
        assert order == list(range(10))


async def test_idle_workers_share_what_comes(gate):
    async with running(workers := Watched(workers=3)):
        futures = [workers.block(gate) for _ in range(3)]
        assert workers.batches == [[1], [1], [1]]
        assert workers.waiting == 0
        gate.touch()
        assert len(set(await pids(futures))) == 3


async def test_a_refused_call_fails_alone():
    async with running(workers := Watched()):
        good, bad, after = await asyncio.gather(*(workers.ask(told) for told in (b"answer", REFUSE, b"answer")))
        assert (good.code, bad.code, bad.body, after.code) == (200, 400, b"refused", 200)


async def test_large_calls_and_replies_pass_whole():
    async with running(workers := Watched()):
        futures = [workers.ask(b"x" * size) for size in (10**7, 0, 10**6)]
        assert len(await pids(futures)) == 3


async def test_reply_says_how_long_its_call_waited_and_in_what_batch(gate):
    async with running(workers := Watched()):
        first, second = workers.block(gate), workers.ask()
        await asyncio.sleep(0)
        gate.touch()
        first, second = await first, await second
        assert (first.batch, second.batch) == (1, 1)
        assert second.queue_seconds > first.queue_seconds >= 0


# The queue


async def test_queue_is_bounded(gate):
    async with running(workers := Watched(queue_size=2)):
        computing = workers.block(gate)
        waiting = [workers.ask() for _ in range(2)]
        with pytest.raises(QueueFullError, match="2 requests are waiting"):
            workers.check_capacity()
        with pytest.raises(QueueFullError, match="2 requests are waiting"):
            workers.ask()
        assert workers.metric("pierhead_queue_length") == 2
        gate.touch()
        assert len(await pids([computing, *waiting])) == 3
        assert await workers.ask()


async def test_call_whose_caller_has_gone_is_dropped(gate):
    async with running(workers := Watched()):
        computing = workers.block(gate)
        gone = workers.ask(DIE)  # would kill the worker if it were given to it
        after = workers.ask()
        gone.cancel()
        gate.touch()
        assert len(set(await pids([computing, after]))) == 1


async def test_caller_that_goes_frees_its_place_at_once(gate):
    async with running(workers := Watched(queue_size=2)):
        computing = workers.block(gate)
        gone = [workers.ask(b"x" * 1000) for _ in range(2)]
        in_hand = workers.held_bytes - 2000
        assert in_hand == len(WAIT_FOR + os.fsencode(gate))
        for future in gone:
            future.cancel()
        third = workers.ask(b"answer")  # in the same breath
        await asyncio.sleep(0)
        assert (workers.waiting, workers.held_bytes) == (1, in_hand + len(b"answer"))
        assert workers.metric("pierhead_queue_length") == 1
        gate.touch()
        await asyncio.gather(computing, third)
        assert workers.held_bytes == 0


async def test_callers_that_are_all_gone_leave_an_idle_worker(gate):
    async with running(workers := Watched()):
        computing = workers.block(gate)
        gone = [workers.ask(DIE) for _ in range(5)]
        for future in gone:
            future.cancel()
        gate.touch()
        await computing
        assert workers.waiting == 0
        assert await workers.ask()


async def test_caller_that_goes_meanwhile_harms_nobody(gate):
    async with running(workers := Watched()):
        computing = workers.block(gate)
        computing.cancel()
        gate.touch()
        assert await workers.ask()


# Batches


async def test_full_batches_form_of_what_came_meanwhile(gate):
    async with running(workers := Watched("obedient", 4)):
        first = workers.block(gate)
        futures = [workers.ask() for _ in range(10)]
        gate.touch()
        await first
        # On a CPU a batch that is not full gains nothing.
        assert [read(reply)["beside"] for reply in await asyncio.gather(*futures)] == [4] * 8 + [1] * 2


async def test_idle_worker_gets_a_call_at_once(gate):
    async with running(workers := Watched("obedient", 4, workers=2)):
        blocked = workers.block(gate)
        assert read(await workers.ask())["beside"] == 1
        gate.touch()
        await blocked


async def test_gpu_gets_the_next_batch_while_it_computes(gate):
    async with running(workers := Watched("obedient", 4, how=GPU)):
        first = workers.block(gate)
        assert workers.batches == [[1]]
        second = [workers.ask() for _ in range(4)]
        assert workers.batches == [[1, 4]]  # a full batch goes at once
        third = [workers.ask() for _ in range(2)]
        assert workers.batches == [[1, 4]]  # it holds two
        gate.touch()
        await first
        assert {read(reply)["beside"] for reply in await asyncio.gather(*second)} == {4}
        assert {read(reply)["beside"] for reply in await asyncio.gather(*third)} <= {1, 2}


async def test_gpu_that_computes_gets_less_than_a_batch_after_a_while(gate):
    async with running(workers := Watched("obedient", 4, how=GPU)):
        first = workers.block(gate)
        second = [workers.ask() for _ in range(2)]
        assert workers.batches == [[1]]
        await until(lambda: workers.batches == [[1, 2]])
        gate.touch()
        assert len(await pids([first, *second])) == 3


async def test_device_batches_what_waits_by_what_its_worker_says(gate):
    """The real handshake of the real worker, whose device computes nothing."""
    async with running_on_a_device("moves", queue_size=64) as workers:
        first = workers.submit(Call("raw", msgspec.json.encode({"instances": [str(gate)]})))
        futures = [workers.submit(Call("raw", b'{"instances": ["/"]}')) for _ in range(64)]
        gate.touch()
        assert (await first).batch == 1
        assert [reply.batch for reply in await asyncio.gather(*futures)] == [32] * 64
        assert 'form="cuda"' in workers.metrics.expose().decode()


async def test_model_that_a_device_does_not_take_is_computed_on_the_cpu(capfd):
    async with running_on_a_device("fails") as workers:
        replies = await asyncio.gather(*(workers.submit(Call("raw", b'{"instances": ["/"]}')) for _ in range(8)))
        assert [(reply.code, reply.batch) for reply in replies] == [(200, 1)] * 8
        assert 'form="quick"' in workers.metrics.expose().decode()
        assert workers.metric("pierhead_model_process_restarts_total") == 0
    assert "the CPU computes it" in capfd.readouterr().err


async def test_driver_that_is_too_old_is_told_by_its_reason():
    workers = Watched("on_a_device", "old", how=None)
    with pytest.raises(DriverTooOldError, match=r"knows CUDA 12\.4"):
        await workers.run(lambda: Path("/"), make_load_on_a_device)
    assert "CUDA 12.4" in workers.failure


async def test_worker_on_a_device_has_time_for_its_kernels():
    async with running_on_a_device("moves") as workers:
        assert workers.start_seconds == workers_module.SLOW_START_SECONDS
    async with running(workers := Watched()):
        assert workers.start_seconds == workers_module.START_SECONDS


def make_load_on_a_device(folder):
    return msgspec.structs.replace(make_load(folder), device="meta")


@contextlib.asynccontextmanager
async def running_on_a_device(how, **given):
    workers = Watched("on_a_device", how, how=None, **given)
    async with running(workers, make_load_on_a_device, seconds=180):  # each imports torch
        yield workers


# Deaths of workers


async def test_death_fails_the_call_that_was_alone_and_is_survived():
    async with running(workers := Watched()):
        before, fatal, after = (workers.ask(told) for told in (b"answer", DIE, b"answer"))
        with pytest.raises(InternalError, match=r"died of this request \(SIGKILL: most likely out of memory"):
            await fatal
        first, second = await pids([before, after])
        assert first != second
        assert workers.not_ready is None
        assert workers.metric("pierhead_model_process_restarts_total") == 1
        assert workers.metric("pierhead_workers") == 1


async def test_worker_that_leaves_by_itself_is_told_by_its_code():
    async with running(workers := Watched()):
        with pytest.raises(InternalError, match=r"died of this request \(exit code 1\)"):
            await workers.ask(LEAVE)
        assert await workers.ask()


async def test_other_workers_go_on_while_one_is_replaced(monkeypatch):
    async with running(workers := Watched(workers=2)):
        go_on = hold_starts(workers, monkeypatch)
        with pytest.raises(InternalError):
            await workers.ask(DIE)
        assert len(set(await pids([workers.ask() for _ in range(5)]))) == 1
        assert workers.not_ready is None
        assert workers.metric("pierhead_workers") == 1
        go_on.set()
        await until(lambda: workers.metric("pierhead_workers") == 2)


async def test_who_was_beside_the_culprit_is_computed_anew_and_it_fails_alone(gate):
    async with running(workers := Watched("obedient", 4)):
        first = workers.block(gate)
        futures = [workers.ask(told) for told in (b"1", b"2", DIE, b"4")]
        after = workers.ask()
        assert workers.batches == [[1]]
        gate.touch()
        await first
        results = await asyncio.gather(*futures, after, return_exceptions=True)
        assert isinstance(results[2], InternalError)
        assert [read(results[place])["beside"] for place in (0, 1, 3, 4)] == [1, 1, 1, 1]
        # Once in the batch, and once alone.
        assert workers.metric("pierhead_model_process_restarts_total") == 2


async def test_batch_of_a_killed_worker_goes_to_an_idle_one_at_once(tmp_path, monkeypatch):
    gates = [tmp_path / name for name in ("first", "second", "third")]
    async with running(workers := Watched("obedient", 2, workers=2)):
        hold_starts(workers, monkeypatch)
        one, other = (workers.block(path) for path in gates[:2])
        pair = [workers.block(gates[2]), workers.ask()]
        gates[0].touch()
        (killed,) = await pids([one])
        assert workers.batches == [[2], [1]]
        gates[1].touch()
        (left,) = await pids([other])
        os.kill(killed, signal.SIGKILL)
        gates[2].touch()
        replies = [read(reply) for reply in await asyncio.gather(*pair)]
        assert [(reply["pid"], reply["beside"]) for reply in replies] == [(left, 1)] * 2


def hold_starts(workers, monkeypatch):
    """No worker is started from now on, until the event that this returns is set."""
    start, go_on = workers._start_worker, asyncio.Event()

    async def wait_and_start(*arguments):
        await go_on.wait()
        await start(*arguments)

    monkeypatch.setattr(workers, "_start_worker", wait_and_start)
    return go_on


async def test_gpus_second_batch_is_innocent_of_its_worker_s_death(gate):
    async with running(workers := Watched("obedient", 1, how=GPU)):
        (pid,) = await pids([workers.ask()])
        first, second = workers.block(gate), workers.ask()
        assert workers.batches == [[1, 1]]
        os.kill(pid, signal.SIGKILL)
        gate.touch()
        assert len(await pids([first, second])) == 2


async def test_caller_that_left_a_batch_is_no_proof_of_the_other_s_guilt(gate):
    async with running(workers := Watched("obedient", 2)):
        first = workers.block(gate)
        second_gate = gate.with_name("second")
        gone, innocent = workers.block(second_gate), workers.ask()
        gate.touch()
        (pid,) = await pids([first])
        await until(lambda: workers.batches == [[2]])
        gone.cancel()
        os.kill(pid, signal.SIGKILL)
        assert read(await innocent)["pid"] != pid


async def test_surplus_waits_in_a_busy_worker_s_hands(gate):
    async with running(workers := Watched("obedient", 1, workers=2, how=AHEAD)):
        workers.on_batch(0.0)  # which was quick
        blocked = [workers.block(gate) for _ in range(3)]
        assert sorted(workers.batches) == [[1], [1]]  # a third one goes to whoever is free first
        blocked += [workers.block(gate) for _ in range(3)]
        assert sorted(workers.batches) == [[1, 1], [1, 1]]
        assert workers.waiting == 2
        gate.touch()
        assert len(await pids(blocked)) == 6


async def test_nothing_waits_in_a_busy_worker_s_hands_where_batches_take_long(gate):
    async with running(workers := Watched("obedient", 1, how=AHEAD)):
        first = [workers.block(gate) for _ in range(4)]
        assert workers.batches == [[1]]  # nobody knows how long they take
        workers.on_batch(QUICK_SECONDS)
        first.append(workers.block(gate))
        assert workers.batches == [[1]]
        gate.touch()
        await asyncio.gather(*first)


async def test_what_waits_behind_a_call_that_takes_long_is_answered_by_others(gate, monkeypatch):
    monkeypatch.setattr(workers_module, "PATIENCE_SECONDS", 0.05)
    async with running(workers := Watched("obedient", 1, workers=2, how=AHEAD)):
        workers.on_batch(0.0)
        other = gate.with_name("other")
        stuck = [workers.block(gate), workers.block(other)]
        behind = [workers.ask() for _ in range(5)]
        assert sorted(workers.batches) == [[1, 1], [1, 1]]
        other.touch()
        answered = await pids(behind)
        assert len(set(answered)) == 1  # one of which was in the stuck one's hands
        counted = workers.metric("pierhead_batch_size_count")
        gate.touch()
        await asyncio.gather(*stuck)
        await workers.ask()
        await until(lambda: not any(workers.batches))
        assert workers.metric("pierhead_batch_size_count") == counted + 2


async def test_late_worker_that_answers_after_all_takes_nobody_with_it(gate, monkeypatch):
    workers = Watched("obedient", 1, how=AHEAD, answer_seconds=0.2)
    async with running(workers):
        workers.on_batch(0.0)
        kills, send = [], workers._server.send
        monkeypatch.setattr(workers._server, "send", kills.append)
        second = gate.with_name("second")
        late, innocent = workers.block(gate), workers.block(second)
        last = workers.ask()
        assert workers.batches == [[1, 1]]
        with pytest.raises(DeadlineExceededError):
            await late
        workers.be_patient()
        gate.touch()  # it answers, and begins with the next one, before it is killed
        await until(lambda: workers.batches == [[1]])
        monkeypatch.setattr(workers._server, "send", send)
        send(*kills)
        second.touch()
        assert len(await pids([innocent, last])) == 2


async def test_end_while_last_words_are_waited_for_leaves_no_caller_behind(gate):
    async with running(workers := Watched("obedient", 1, how=AHEAD)) as task:
        [worker] = workers._workers.values()
        worker._transport.pause_reading()
        held = [workers.block(gate) for _ in range(3)]
        os.kill(*children(workers.fork_server), signal.SIGKILL)
        await until(lambda: not workers._workers)
        task.cancel()
        for future in held:
            with pytest.raises(UnavailableError, match="shutting down"):
                await future


async def test_nothing_waits_in_a_busy_worker_s_hands_while_another_one_starts(gate, monkeypatch):
    async with running(workers := Watched("obedient", 1, workers=2, how=AHEAD)):
        workers.on_batch(0.0)
        go_on = hold_starts(workers, monkeypatch)
        blocked = workers.block(gate)
        with pytest.raises(InternalError):
            await workers.ask(DIE)
        waiting = [workers.ask() for _ in range(4)]
        assert workers.batches == [[1]]
        go_on.set()
        assert len(set(await pids(waiting))) == 1
        gate.touch()
        await blocked


async def test_nothing_waits_behind_what_takes_long(gate):
    async with running(workers := Watched("obedient", 1, how=AHEAD)):
        workers.on_batch(0.0)
        heavy = workers.ask(make_parts((WAIT_FOR + os.fsencode(gate), HEAVY_PIXELS + 1)))
        await until(lambda: workers.batches == [[1]] and not workers._waiting)
        await until(lambda: any(worker.is_heavy for worker in workers._workers.values()))
        waiting = [workers.ask() for _ in range(4)]
        assert workers.batches == [[1]]
        gate.touch()
        await asyncio.gather(heavy, *waiting)


async def test_what_was_behind_a_batch_is_innocent_of_its_worker_s_death(gate):
    async with running(workers := Watched("obedient", 1, how=AHEAD)):
        workers.on_batch(0.0)
        blocked = workers.block(gate)
        innocent = [workers.ask(b"%d" % number) for number in range(4)]
        await until(lambda: workers.batches == [[1, 1]])
        os.kill(*children(workers.fork_server), signal.SIGKILL)
        with pytest.raises(InternalError, match="died of this request"):
            await blocked
        assert len(set(await pids(innocent))) == 1
        assert workers.metric("pierhead_model_process_restarts_total") == 1


async def test_what_was_answered_is_no_cause_of_death(monkeypatch):
    """The fork server tells of a death while the answer still waits to be read."""
    async with running(workers := Watched("obedient", 1, how=AHEAD)):
        workers.on_batch(0.0)
        [worker] = workers._workers.values()
        worker._transport.pause_reading()
        answered, fatal = workers.ask(), workers.ask(DIE)
        behind = [workers.ask() for _ in range(2)]
        await until(lambda: workers.batches == [[1, 1]])
        await until(lambda: not workers._workers)  # its death was told
        worker._transport.resume_reading()
        assert (await answered).code == 200
        with pytest.raises(InternalError, match="died of this request"):
            await fatal
        assert len(await pids(behind)) == 2


async def test_idle_death_is_noticed(monkeypatch):
    async with running(workers := Watched()):
        (pid,) = await pids([workers.ask()])
        go_on = hold_starts(workers, monkeypatch)
        os.kill(pid, signal.SIGSEGV)
        await until(lambda: workers.not_ready)
        assert workers.not_ready == "the model's process died (SIGSEGV) and is starting anew"
        assert workers.metric("pierhead_workers") == 0
        waiting = workers.ask()
        go_on.set()
        (another,) = await pids([waiting])
        assert another != pid
        assert workers.not_ready is None


def ask_in_vain(workers):
    """What nobody but the server asks for, and is to blame for nothing."""
    return [workers.submit(Call("probe", DIE)) for _ in range(RESTARTS + 1)]


async def test_deaths_in_a_row_end_it():
    async with running(workers := Watched()) as task:
        fatal = ask_in_vain(workers)
        waiting = workers.ask()
        with pytest.raises(ModelProcessDiedError, match="SIGKILL: most likely out of memory, 4 times in a row"):
            await task
        assert all(isinstance(job.exception(), InternalError) for job in fatal)
        with pytest.raises(UnavailableError, match="4 times in a row"):
            await waiting
        with pytest.raises(UnavailableError, match="4 times in a row"):
            workers.ask()
        assert workers.failure


@pytest.mark.parametrize("how", [ONE_BY_ONE, GPU])
async def test_requests_that_kill_do_not_end_it(how):
    """Each new process has answered the model's sample: it is not the model that is to blame."""
    async with running(workers := Watched(how=how)) as task:
        fatal = [workers.ask(SAY + b"%d" % (number // 2)) for number in range(4 * RESTARTS)]
        results = await asyncio.gather(*fatal, return_exceptions=True)
        assert all(isinstance(result, InternalError) for result in results)
        assert await workers.ask()
        assert not task.done()
        assert workers.failure is None


async def test_an_answer_between_deaths_starts_the_count_anew():
    async with running(workers := Watched()):
        for _ in range(RESTARTS + 2):
            fatal, good = workers.ask(DIE), workers.ask()
            with pytest.raises(InternalError):
                await fatal
            assert await good


async def test_calls_that_kill_do_not_end_a_batch_job():
    workers = Watched(how=None)
    workers._pool = replace(workers._pool, offline=True)
    async with running(workers) as task:
        told = [*BOOM, DIE, DIE, b"answer"]
        answers = await asyncio.gather(*map(workers.ask, told), return_exceptions=True)
        assert not task.done()
        assert workers.dying is None
    assert len(told) > RESTARTS + 1
    assert [type(answer) for answer in answers[:-1]] == [InternalError] * (len(told) - 1)
    assert answers[-1].code == 200


async def test_call_that_shall_be_alone_is(gate):
    workers = Watched(how=None)
    workers._pool = replace(workers._pool, offline=True, batch=4)
    async with running(workers):
        blocked = workers.block(gate)
        asked = [workers.submit(Call("raw", b"answer"), alone=number == 1) for number in range(4)]
        gate.touch()
        beside = [read(reply)["beside"] for reply in await asyncio.gather(blocked, *asked)]
    assert beside[2] == 1


async def test_each_death_in_a_row_is_followed_by_a_longer_wait(monkeypatch):
    waits = []

    async def remember(seconds, sleep=asyncio.sleep):
        if seconds >= 1:
            waits.append(seconds)
        else:
            await sleep(seconds)

    monkeypatch.setattr(workers_module, "FIRST_BACKOFF_SECONDS", 1.0)
    async with running(workers := Watched()) as task:
        monkeypatch.setattr(workers_module.asyncio, "sleep", remember)
        fatal = ask_in_vain(workers)
        await asyncio.wait({task})
        assert waits == [1.0, 2.0]  # none after the first
        assert all(future.done() for future in fatal)
    assert isinstance(task.exception(), ModelProcessDiedError)


@pytest.mark.parametrize("how", [None, ONE_BY_ONE, GPU])
@pytest.mark.parametrize("batch", [1, 4])
async def test_whatever_happens_each_call_gets_its_own_outcome(how, batch, tmp_path):
    """Calls that answer, are refused, take a while, are given up, or kill their worker, all at once."""
    async with running(workers := Watched("obedient", batch, workers=2, queue_size=10**4, how=how)) as task:
        told = [DIE if number % 41 == 3 else REFUSE if number % 7 == 0 else b"answer" for number in range(400)]
        futures = [workers.ask(each) for each in told]
        gone = [workers.ask(b"answer") for _ in range(50)]
        for future in gone[::2]:
            future.cancel()
        results = await asyncio.gather(*futures, return_exceptions=True)
        for each, result in zip(told, results, strict=True):
            if each == DIE:
                assert isinstance(result, InternalError)
            else:
                assert result.code == (400 if each == REFUSE else 200)
        assert len(await pids(gone[1::2])) == 25
        assert not task.done()
        await until(lambda: workers.metric("pierhead_workers") == 2)
        assert workers.batches == [[], []]


# Deaths again and again

BOOM = [SAY + b"boom %d" % number for number in range(3)]


async def until_restarts(workers, number):
    await until(lambda: workers.metric("pierhead_model_process_restarts_total") >= number)


async def die(workers, *told):
    """Calls that kill, one after another, each followed by one that is answered."""
    for each in told:
        with pytest.raises(InternalError):
            await workers.ask(each)
        assert await workers.ask()


async def test_deaths_again_and_again_are_told_with_the_last_words():
    async with running(workers := Watched()) as task:
        await die(workers, *BOOM[:2])
        assert (workers.dying, workers.metric("pierhead_model_process_dies")) == (None, 0)
        await die(workers, BOOM[2])
        assert workers.dying == "the model's process died 3 times within 60 s: exit code 3; its last words: boom 2"
        assert workers.metric("pierhead_model_process_dies") == 1
        assert await workers.ask()  # who is here nevertheless is served
        assert not task.done()


async def test_last_words_are_only_told_to_who_asks_whether_it_is_ready(monkeypatch):
    async with running(workers := Watched()):
        go_on = hold_starts(workers, monkeypatch)
        with pytest.raises(InternalError) as failed:
            await workers.ask(SAY + b"secret")
        await until(lambda: workers.not_ready)
        assert "secret" not in f"{failed.value} {workers.not_ready}"
        go_on.set()


async def test_idle_deaths_are_counted():
    async with running(workers := Watched()):
        for number in range(3):
            (pid,) = await pids([workers.ask()])
            os.kill(pid, signal.SIGSEGV)
            await until_restarts(workers, number + 1)
        assert workers.dying == "the model's process died 3 times within 60 s: SIGSEGV"


async def test_deaths_of_the_fork_server_are_counted():
    async with running(workers := Watched()):
        for number in range(3):
            os.kill(workers.fork_server, signal.SIGKILL)
            await until_restarts(workers, number + 1)
            assert await workers.ask()
        assert "SIGKILL" in workers.dying


async def test_request_that_kills_again_and_again_takes_the_model_from_nobody():
    async with running(workers := Watched(workers=2)) as task:
        assert await workers.ask()
        fatal = [workers.ask(DIE) for _ in range(3 * RESTARTS)]
        results = await asyncio.gather(*fatal, return_exceptions=True)
        assert all(isinstance(result, InternalError) for result in results)
        assert await workers.ask()
        assert workers.dying is None
        assert not task.done()


async def test_batch_of_a_process_that_dies_by_itself_is_innocent(tmp_path):
    async with running(workers := Watched("obedient", 2)):
        for number in range(3):
            first, second = tmp_path / f"first-{number}", tmp_path / f"second-{number}"
            blocked = workers.block(first)
            pair = [workers.block(second), workers.ask(b"%d" % number)]
            first.touch()
            (pid,) = await pids([blocked])
            await until(lambda: workers.batches == [[2]])
            assert workers.dying is None
            os.kill(pid, signal.SIGKILL)
            second.touch()
            assert len(await pids(pair)) == 2
        assert workers.dying


async def test_it_is_not_ready_again_before_its_processes_live_and_answer(tmp_path):
    (mortal := tmp_path / "mortal").touch()
    async with running(workers := Watched("mortal", mortal)):
        while not workers.dying:
            with contextlib.suppress(InternalError):
                await workers.ask()
        # Nobody sends anything, and yet it dies: each time anew the quiet begins.
        for _ in range(4):
            workers.now += FIRST_QUIET_SECONDS - 1
            await until_restarts(workers, workers.metric("pierhead_model_process_restarts_total") + 1)
            assert workers.dying
        mortal.unlink()
        async with asyncio.timeout(DEADLINE_SECONDS):
            while workers.dying:
                workers.now += 1
                await asyncio.sleep(0.002)
        assert workers.metric("pierhead_model_process_dies") == 0
        await until(workers._proof.done)
        assert await workers.ask()


# Deadlines


async def test_worker_that_does_not_come_back_is_killed_and_replaced(gate):
    async with running(workers := Watched(answer_seconds=0.3)):
        (pid,) = await pids([workers.ask()])
        stuck, waiting = workers.block(gate), workers.ask()
        with pytest.raises(DeadlineExceededError, match=r"the model took more than 0\.3 s"):
            await stuck
        workers.be_patient()
        (another,) = await pids([waiting])
        assert another != pid
        await until(lambda: not is_alive(pid))


async def test_worker_that_never_says_a_word_is_killed_and_replaced(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("pierhead_server.workers.START_SECONDS", 0.5)
    async with running(workers := Watched("mute_at_first", tmp_path / "marker")):
        assert (tmp_path / "marker").exists()
        assert await workers.ask()
    assert "worker 0 died: no answer for 0.5 s" in caplog.text


async def test_requests_that_take_too_long_never_end_the_server(gate, caplog):
    async with running(workers := Watched(answer_seconds=1.0)) as task:
        stuck = [workers.block(gate) for _ in range(RESTARTS + 2)]
        results = await asyncio.gather(*stuck, return_exceptions=True)
        assert all(isinstance(result, DeadlineExceededError) for result in results)
        gate.touch()
        workers.be_patient()
        assert await workers.ask()
        assert not task.done()
        assert workers.dying is None
    assert "worker 0 died: no answer for 1 s" in caplog.text
    assert "memory" not in caplog.text


async def test_deadline_of_one_batch_is_not_the_next_one_s(gate):
    async with running(workers := Watched("obedient", 1, how=GPU, answer_seconds=0.3)):
        stuck, innocent = workers.block(gate), workers.ask()
        assert workers.batches == [[1, 1]]
        with pytest.raises(DeadlineExceededError):
            await stuck
        workers.be_patient()
        assert await innocent


async def test_time_in_the_queue_does_not_count(tmp_path):
    gates = [tmp_path / str(number) for number in range(8)]
    async with running(workers := Watched(answer_seconds=3.0)):
        futures = [workers.block(path) for path in gates]
        begun = asyncio.get_running_loop().time()
        for path, future in zip(gates, futures, strict=True):
            await asyncio.sleep(0.4)
            path.touch()
            await future
        assert asyncio.get_running_loop().time() - begun > 3.0
        assert workers.metric("pierhead_model_process_restarts_total") == 0


# Deaths of the fork server


async def test_fork_server_that_is_killed_comes_back_with_all_calls(gate):
    async with running(workers := Watched(workers=2)):
        parent = workers.fork_server
        futures = [workers.block(gate) for _ in range(2)] + [workers.ask() for _ in range(3)]
        os.kill(parent, signal.SIGKILL)
        await until(lambda: workers.not_ready)
        assert "SIGKILL: most likely out of memory" in workers.not_ready
        gate.touch()
        assert len(await pids(futures)) == 5
        assert workers.fork_server != parent
        await until(lambda: workers.metric("pierhead_workers") == 2)
        assert workers.metric("pierhead_model_process_restarts_total") == 1


async def test_workers_of_a_killed_fork_server_end(gate):
    async with running(workers := Watched(workers=2)):
        blocked = [workers.block(gate) for _ in range(2)]
        gate.touch()
        orphans = await pids(blocked)
        os.kill(workers.fork_server, signal.SIGKILL)
        await until(lambda: not any(map(is_alive, orphans)))


async def test_worker_caught_in_the_model_ends_with_its_fork_server(gate):
    async with running(workers := Watched(workers=1)):
        (child,) = await pids([workers.ask()])
        workers.block(gate)
        os.kill(workers.fork_server, signal.SIGKILL)
        await until(lambda: not is_alive(child))


async def test_fork_server_that_dies_again_and_again_ends_it():
    workers = Watched("dies_when_ready")
    with pytest.raises(ModelProcessDiedError, match="SIGKILL: most likely out of memory, 4 times in a row"):
        await workers.run(lambda: Path("/"), make_load)
    assert workers.failure
    assert workers.metric("pierhead_model_process_restarts_total") == RESTARTS


# The faster form


async def test_workers_are_exchanged_for_the_faster_form_without_a_lost_call(tmp_path):
    form_when = tmp_path / "form"
    async with running(workers := Watched("obedient", 1, form_when, workers=2)):
        answers, go_on = [], True

        async def call():
            while go_on:
                answers.append(read(await workers.ask()))

        def computing(form):
            return {answer["pid"] for answer in answers if answer["form"] == form}

        callers = [asyncio.create_task(call()) for _ in range(4)]
        await until(lambda: len(computing("quick")) == 2)
        form_when.touch()
        await until(lambda: len(computing("compiled")) == 2)
        go_on = False
        await asyncio.gather(*callers)
        assert {answer["form"] for answer in answers} == {"quick", "compiled"}
        assert len({answer["pid"] for answer in answers}) == 4
        await until(lambda: workers.metric("pierhead_workers") == 2)
        assert workers.metric("pierhead_model_process_restarts_total") == 0
        assert workers._policy.size == Obedient.FORMED_BATCH
        assert 'form="compiled"' in workers.metrics.expose().decode()


async def test_worker_with_a_call_in_hand_goes_when_it_has_answered(tmp_path, gate):
    form_when = tmp_path / "form"
    async with running(workers := Watched("obedient", 1, form_when)):
        blocked = workers.block(gate)
        form_when.touch()
        await until(lambda: len(workers.batches) == 2)
        assert read(await workers.ask())["form"] == "compiled"  # while the old one computes
        gate.touch()
        answer = read(await blocked)
        assert answer["form"] == "quick"
        await until(lambda: not is_alive(answer["pid"]))
        await until(lambda: len(workers.batches) == 1)


async def test_leaving_worker_that_dies_is_not_replaced_again(tmp_path, gate):
    form_when = tmp_path / "form"
    async with running(workers := Watched("obedient", 1, form_when)):
        (pid,) = await pids([workers.ask()])
        blocked = workers.block(gate)
        form_when.touch()
        await until(lambda: any(worker.leaving for worker in workers._workers.values()))
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(InternalError):
            await blocked
        assert read(await workers.ask())["form"] == "compiled"
        assert len(workers.batches) == 1


@pytest.mark.parametrize("deaths", [1, 3])
async def test_old_worker_stays_until_one_takes_its_place(tmp_path, deaths):
    marker, form_when = tmp_path / "marker", tmp_path / "marker.form"
    marker.write_text("x" * deaths)
    async with running(workers := Watched("bad_form", marker)):
        form_when.touch()
        while read(await workers.ask())["form"] == "quick":
            assert workers.not_ready is None
        await until(lambda: len(workers.batches) == 1)
        assert not marker.read_text()
        assert workers.dying is None


# The start, and the end


async def test_nothing_is_answered_before_the_model_is_loaded():
    workers = Watched()
    assert workers.not_ready == "the model is loading"
    assert workers.signature is None
    for refused in (workers.check_capacity, workers.ask):
        with pytest.raises(UnavailableError, match="the model is loading"):
            refused()
    async with running(workers):
        assert workers.not_ready is None
        assert workers.signature == SIGNATURE
        assert workers.answer_seconds == DEADLINE_SECONDS


async def test_model_that_stays_in_its_first_form_says_why():
    workers = Watched("unformed")
    async with running(workers):
        assert workers.form_reason == "the model cannot be converted: of no kind"


async def test_reason_of_the_first_form_goes_with_it(tmp_path):
    form_when = tmp_path / "form"
    async with running(workers := Watched("obedient", 1, form_when)):
        workers.form_reason = "the model process of before said so"
        assert read(await workers.ask())["form"] == "quick"
        assert workers.form_reason
        form_when.touch()
        await until(lambda: workers.form_reason is None)
        assert 'form="compiled"' in workers.metrics.expose().decode()


@pytest.mark.parametrize("how", ["late", "dies", "never"])
async def test_form_that_comes_twice_leaves_as_many_workers_as_before(gate, tmp_path, how):
    marker = tmp_path / "marker"
    if how == "dies":
        marker.with_name("marker.dies").touch()
    workers = Watched("formed_twice", marker)
    async with running(workers):
        held = workers.block(gate)  # its worker cannot leave yet
        marker.touch()
        await until(lambda: workers._workers.get(2) and workers._workers[2].ready)
        if how != "never":
            marker.with_name("marker.late").touch()
        gate.touch()
        await held
        await until(lambda: list(workers._workers) == [2])
        await until(lambda: len(children(workers.fork_server)) == 1)
        assert not workers._leaving


async def test_torch_is_imported_while_the_artifact_is_fetched():
    workers, loop = Watched("expectant"), asyncio.get_running_loop()

    def fetch():
        asyncio.run_coroutine_threadsafe(expect(), loop).result()
        return Path("/")

    async def expect():
        workers.expect_torch()

    task = asyncio.create_task(workers.run(fetch, make_load))
    await until(lambda: workers.signature or task.done())
    assert workers.signature
    task.cancel()
    await asyncio.wait({task})


async def test_artifact_that_the_process_refuses_ends_it():
    workers = Watched("misfit")
    with pytest.raises(ArtifactInvalidError, match="weights: do not fit"):
        await workers.run(lambda: Path("/"), make_load)
    assert workers.failure == "weights: do not fit"
    with pytest.raises(UnavailableError, match="weights: do not fit"):
        workers.check_capacity()


async def test_model_that_does_not_answer_its_sample_is_never_ready(tmp_path):
    (tmp_path / "marker").write_text("x" * 10)
    workers = Watched("refuses_its_sample", tmp_path / "marker")
    with pytest.raises(ArtifactInvalidError, match=r"^the model cannot answer warmup\.json: no$"):
        await workers.run(lambda: Path("/"), make_load)
    assert workers.not_ready == "the model is loading"
    assert workers.failure == "the model cannot answer warmup.json: no"


async def test_sample_that_fails_later_costs_one_worker(tmp_path, caplog):
    (tmp_path / "marker").touch()
    workers = Watched("refuses_its_sample", tmp_path / "marker")
    async with running(workers):
        (tmp_path / "marker").write_text("x")
        with pytest.raises(InternalError):
            await workers.ask(DIE)
        assert await pids([workers.ask()])
    assert "worker 0 died: the model cannot answer warmup.json: no" in caplog.text


async def test_death_while_loading_ends_it():
    with pytest.raises(ModelProcessDiedError, match="SIGKILL: most likely out of memory, while loading the model"):
        await Watched("dies_loading").run(lambda: Path("/"), make_load)


async def test_failed_fetch_ends_it():
    def fetch():
        raise ArtifactNotFoundError("nothing is there")

    workers = Watched()
    with pytest.raises(ArtifactNotFoundError):
        await workers.run(fetch, make_load)
    assert workers.failure == "nothing is there"


async def test_the_end_leaves_no_process_and_no_caller_behind(gate):
    workers = Watched(workers=2)
    async with running(workers) as task:
        children = await pids([workers.ask() for _ in range(8)])
        parent = workers.fork_server
        held = [workers.block(gate) for _ in range(3)]
        task.cancel()
        for future in held:
            with pytest.raises(UnavailableError, match="shutting down"):
                await future
    assert not is_alive(parent)
    # They are caught in the model, and would compute until the gate is there.
    await until(lambda: not any(map(is_alive, children)))


async def test_fork_server_that_does_not_go_is_killed(monkeypatch):
    monkeypatch.setattr(workers_module, "_EXIT_SECONDS", 0.2)
    workers = Watched("ignores_its_end")
    task = asyncio.create_task(workers.run(lambda: Path("/"), make_load))
    await until(lambda: workers.signature)
    parent = workers.fork_server
    task.cancel()
    await asyncio.wait({task})
    assert not is_alive(parent)


# Requests in pieces

HEAVY = HEAVY_PIXELS + 1


def firsts(reply):
    return [prediction["first"] for prediction in read(reply)["predictions"]]


async def test_pieces_are_answered_in_their_order_by_all_workers(tmp_path):
    gates = [tmp_path / str(number) for number in range(6)]
    async with running(workers := Watched(workers=3)):
        split = workers.ask(make_parts(*(WAIT_FOR + os.fsencode(gate) for gate in gates)))
        await until(lambda: workers.batches == [[1], [1], [1]])
        for gate in reversed(gates):
            gate.touch()
        reply = await split
        assert firsts(reply) == list(range(6))
        assert len({prediction["pid"] for prediction in read(reply)["predictions"]}) == 3
        assert (reply.batch, workers.waiting, workers._pieces.pixels) == (1, 0, 0)
        # One request, however many pieces it has.
        assert workers.metric("pierhead_batch_size_count") == 1


async def test_the_deadline_is_a_pieces(gate):
    async with running(workers := Watched(answer_seconds=2.0)):
        parts = [WAIT_FOR + os.fsencode(gate.with_name(str(number))) for number in range(12)]
        split = workers.ask(make_parts(*parts))
        begun = asyncio.get_running_loop().time()
        for number in range(12):
            await asyncio.sleep(0.2)
            gate.with_name(str(number)).touch()
        assert firsts(await split) == list(range(12))
        assert asyncio.get_running_loop().time() - begun > 2.0
        late = workers.ask(make_parts(b"1", WAIT_FOR + os.fsencode(gate), b"3"))
        with pytest.raises(DeadlineExceededError, match="the model took more than 2 s"):
            await late
        workers.be_patient()
        assert await workers.ask()


async def test_first_piece_that_fails_answers_for_all(tmp_path):
    gates = [tmp_path / str(number) for number in range(2)]
    first, second = (WAIT_FOR + os.fsencode(gate) for gate in gates)
    async with running(workers := Watched(workers=2)):
        # A later one fails first, and yet it is the earlier one that one worker would have told of.
        split = workers.ask(make_parts(first, REFUSE, DIE))
        await until(lambda: [gathering.left for gathering in workers._pieces._known] == [0])
        assert (split.done(), workers.batches) == (False, [[1], []])
        gates[0].touch()
        assert (await split).body == b"refused"
        assert workers.metric("pierhead_model_process_restarts_total") == 0  # what comes after it is never begun
        split = workers.ask(make_parts(second, DIE, REFUSE, b"4"))
        await until_restarts(workers, 1)
        gates[1].touch()
        with pytest.raises(InternalError, match="died of this request"):
            await split
        assert len(await pids([workers.ask() for _ in range(3)])) == 3


async def test_caller_who_goes_takes_the_pieces_back(gate):
    async with running(workers := Watched(queue_size=1)):
        split = workers.ask(make_parts(WAIT_FOR + os.fsencode(gate), DIE, DIE))
        await until(lambda: workers._pieces.pixels == 0 and workers.waiting == 1)
        with pytest.raises(QueueFullError):
            workers.ask()
        split.cancel()
        await until(lambda: workers.waiting == 0)
        after = workers.ask()
        gate.touch()
        assert await after
        assert workers.metric("pierhead_model_process_restarts_total") == 0


async def test_small_calls_go_past_pieces_which_do_not_starve(gate):
    async with running(workers := Watched(queue_size=100)):
        split = workers.ask(make_parts(WAIT_FOR + os.fsencode(gate), *[b"piece"] * 3))
        await until(lambda: workers.waiting == 1)
        order = []
        calls = [workers.ask() for _ in range(30)]
        for number, future in enumerate((split, *calls)):
            future.add_done_callback(lambda _, number=number: order.append(number))
        gate.touch()
        await asyncio.gather(split, *calls)
        assert MOST_PASSES * 3 <= order.index(0) < len(calls)
        order.remove(0)
        assert order == sorted(order)


async def test_small_request_in_pieces_goes_past_a_large_one(gate):
    async with running(workers := Watched()):
        blocked = workers.block(gate)
        large, small = workers.ask(make_parts(*[b"1"] * 50)), workers.ask(make_parts(*[b"1"] * 3))
        order = []
        for name, future in (("large", large), ("small", small)):
            future.add_done_callback(lambda _, name=name: order.append(name))
        gate.touch()
        await asyncio.gather(blocked, large, small)
        assert order == ["small", "large"]


async def test_heavy_pieces_leave_a_worker_to_who_else_asks(gate):
    async with running(workers := Watched(workers=3)):
        assert await workers.ask()
        heavy = [(WAIT_FOR + os.fsencode(gate), HEAVY)] * 4
        split = workers.ask(make_parts(*heavy))
        await until(lambda: sorted(workers.batches) == [[], [1], [1]])
        # For light ones, too, there is no need to wait.
        assert firsts(await workers.ask(make_parts(b"1", b"2"))) == [0, 1]
        assert await workers.ask()
        gate.touch()
        assert firsts(await split) == [0, 1, 2, 3]


@pytest.mark.parametrize("workers", [1, 2])
async def test_heavy_pieces_take_all_workers_where_nobody_else_asks(gate, workers):
    async with running(workers := Watched(workers=workers)):
        split = workers.ask(make_parts(*[(WAIT_FOR + os.fsencode(gate), HEAVY)] * 3))
        await until(lambda: all(batches == [1] for batches in workers.batches) and workers.batches)
        gate.touch()
        assert firsts(await split) == [0, 1, 2]


async def test_pixels_in_flight_are_bounded(gate):
    async with running(workers := Watched(workers=2, pixels=10)):
        first = workers.ask(make_parts((WAIT_FOR + os.fsencode(gate), 11)))  # alone it may be more
        await until(lambda: workers._pieces.pixels == 11)
        with pytest.raises(QueueFullError, match="pictures of 11 pixels are being predicted: try again later"):
            await workers.ask(make_parts((b"1", 1)))
        assert await workers.ask()
        gate.touch()
        assert await first
        assert firsts(await workers.ask(make_parts((b"1", 5), (b"2", 5)))) == [0, 1]


async def test_request_whose_pieces_kill_is_known_however_it_is_split():
    async with running(workers := Watched()) as task:
        assert await workers.ask()
        for number in range(2 * RESTARTS):
            with pytest.raises(InternalError):
                await workers.ask(make_parts(*[b"1"] * (number % 2), DIE, *[b"1"] * (1 - number % 2)))
        assert workers.dying is None
        assert not task.done()


async def test_pieces_of_a_fork_server_that_dies_are_computed_anew(gate):
    async with running(workers := Watched(workers=2)):
        split = workers.ask(make_parts(*[WAIT_FOR + os.fsencode(gate)] * 4))
        await until(lambda: workers.batches == [[1], [1]])
        os.kill(workers.fork_server, signal.SIGKILL)
        gate.touch()
        assert firsts(await split) == [0, 1, 2, 3]


async def test_short_pieces_go_together_where_nobody_else_asks():
    """For a worker that waits for the next piece computes nothing."""
    async with running(workers := Watched(workers=2)):
        parts = make_parts(*[b"1"] * 14, together=3)
        alone = read(await workers.ask(parts))["predictions"]
        assert [each["beside"] for each in alone][:6] == [3] * 6
        assert [each["beside"] for each in alone][-1] == 1  # and the last ones are shared
        assert await workers.ask()
        beside = read(await workers.ask(parts))["predictions"]
        assert [each["beside"] for each in beside] == [1] * 14


async def test_gpu_gets_several_pieces_at_a_time_and_a_heavy_one_alone():
    async with running(workers := Watched("obedient", 8, how=GPU)):
        light = read(await workers.ask(make_parts(*[b"1"] * 6)))["predictions"]
        assert [each["beside"] for each in light] == [4, 4, 4, 4, 2, 2]
        heavy = read(await workers.ask(make_parts((b"1", HEAVY), (b"2", HEAVY))))["predictions"]
        assert [each["beside"] for each in heavy] == [1, 1]


async def test_the_end_fails_pieces_that_wait(gate):
    async with running(workers := Watched()) as task:
        split = workers.ask(make_parts(*[WAIT_FOR + os.fsencode(gate)] * 3))
        await until(lambda: workers.waiting == 1)
        task.cancel()
        with pytest.raises(UnavailableError, match="shutting down"):
            await split


async def test_bytes_of_pieces_are_bounded(gate):
    """A short request may become long pieces: of gzip, of numbers, of letters that stand for more."""
    async with running(workers := Watched(workers=2, most_bytes=1000)):
        long = WAIT_FOR + b"/" * 1100 + os.fsencode(gate)
        first = workers.ask(make_parts(long, b"0"))  # alone it may be more
        await until(lambda: workers._pieces.held_bytes)  # by then it is in pieces, of which one is answered
        with pytest.raises(RequestBytesFullError, match="requests hold 1000 bytes: try again later"):
            await workers.ask(make_parts(b"1", b"2"))
        gate.touch()
        assert firsts(await first) == [0, 1]
        assert firsts(await workers.ask(make_parts(b"1", b"2"))) == [0, 1]
        await until(lambda: workers.held_bytes == 0)
