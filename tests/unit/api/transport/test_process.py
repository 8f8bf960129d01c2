"""The API as a process of its own, with an API server that has nothing."""

import asyncio
import json
import os
import signal
import socket
import sys

import aiohttp
import pytest
import yaml
from aiohttp import web

from tests.unit.api.transport.conftest import PREDICT, TOKEN, serving

ALICE = {"Authorization": f"Bearer {TOKEN}"}


async def answer_nothing(request):
    """No objects, a watch without events, and a right to everything."""
    if request.query.get("watch"):
        await asyncio.Event().wait()
    if request.path.endswith("selfsubjectaccessreviews"):
        return web.json_response({"status": {"allowed": True}}, status=201)
    if request.path.endswith("selfsubjectreviews"):
        return web.json_response({"status": {"userInfo": {"username": "alice"}}}, status=201)
    return web.json_response({"apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": []})


def _write_kubeconfig(path, url):
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {"token": "own-token"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(yaml.safe_dump(config))


@pytest.fixture
async def process(tmp_path):
    """A process, and the URL that it answers at."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with serving(answer_nothing) as kubernetes:
        _write_kubeconfig(tmp_path / "kubeconfig", kubernetes)
        settings = {"host": "127.0.0.1", "port": port, "drainSeconds": 0.5}
        (tmp_path / "api.yaml").write_text(yaml.safe_dump(settings))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pierhead_api", "--config", str(tmp_path / "api.yaml")),
            env={**os.environ, "KUBECONFIG": str(tmp_path / "kubeconfig"), "NO_PROXY": "127.0.0.1"},
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            yield process, f"http://127.0.0.1:{port}"
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def wait_for(process, session, code, seconds=30):
    """Until /readyz answers this."""
    async with asyncio.timeout(seconds):
        while True:
            assert process.returncode is None, (await process.stderr.read()).decode()
            try:
                async with session.get("/readyz") as answer:
                    if answer.status == code:
                        return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.02)


async def test_process_serves_drains_and_ends_in_peace(process):
    process, url = process
    async with aiohttp.ClientSession(url) as session:
        await wait_for(process, session, 200)
        async with session.get("/v1/projects/team-a/locations/local/endpoints", headers=ALICE) as answer:
            assert (answer.status, await answer.json()) == (200, {})
        async with session.post(PREDICT, headers=ALICE) as answer:
            assert answer.status == 404
        process.send_signal(signal.SIGTERM)
        await wait_for(process, session, 503)
        async with session.get("/healthz") as answer:
            assert answer.status == 200
    async with asyncio.timeout(30):
        logged = (await process.stderr.read()).decode()
        assert await process.wait() == 0
    lines = [json.loads(line) for line in logged.splitlines()]
    assert [line["message"] for line in lines if line["logger"] == "pierhead_api.serve"] == [
        f"listening on {url.removeprefix('http://')}",
        "draining for 0.5 s",
    ]
    assert TOKEN not in logged
    assert "own-token" not in logged
