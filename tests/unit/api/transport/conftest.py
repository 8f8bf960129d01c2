"""An API server, pods and an API, each as small as a test needs it."""

import asyncio
import json
import socket
from contextlib import asynccontextmanager

import pytest
import uvicorn
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client import ApiClient, Configuration
from pierhead_api.access import Access, Authentication
from pierhead_api.app import Application, Parts
from pierhead_api.authorize import Authorizer
from pierhead_api.bounded_http import BoundedHttpProtocol
from pierhead_api.errors import UnauthenticatedError
from pierhead_api.forward import Forwarder, connect_pods
from pierhead_api.identity import Identity
from pierhead_api.kubernetes_api import Kubernetes, make_nobodys
from pierhead_api.metrics import Metrics
from pierhead_api.names import Projects
from pierhead_api.route_table import RouteTable
from pierhead_api.unrouted import Gateway, Unrouted

TOKEN = "secret-token-of-alice"
PREDICT = "/v1/projects/team-a/locations/local/endpoints/photos:predict"
MODEL_PREDICT = "/v1/projects/team-a/models/photos:predict"


class ApiServer:
    """Answers each request with the next of `answers`, a status and a body; the last one stands."""

    def __init__(self):
        self.requests = []  # method, path, query, headers, body
        self.answers = [(200, {})]

    async def answer(self, request):
        body = await request.text()
        asked = json.loads(body) if body else None
        self.requests.append((request.method, request.path, dict(request.query), request.headers, asked))
        status, answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, list):  # a watch
            return web.Response(text="".join(f"{json.dumps(event)}\n" for event in answer))
        headers = {"Retry-After": "7"} if status == 503 else {}
        return web.json_response(answer, status=status, headers=headers)


@pytest.fixture
def api_server():
    return ApiServer()


@pytest.fixture
async def kubernetes(api_server, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", api_server.answer)
    async with TestServer(app) as there:
        own = Configuration(host=str(there.make_url("")).rstrip("/"), api_key={"BearerToken": "Bearer own-token"})
        async with ApiClient(own) as mine, ApiClient(make_nobodys(own)) as callers:
            yield Kubernetes(mine, callers)


def make_object(kind, name, spec, **status):
    """A custom resource as the API server gives it."""
    metadata = {"name": name, "namespace": "team-a", "uid": f"uid-{name}", "resourceVersion": "7"}
    return {"apiVersion": "pierhead.dev/v1", "kind": kind, "metadata": metadata, "spec": spec, "status": status}


def make_endpoint(split=None, name="photos", **spec):
    """An endpoint with this effective split."""
    return make_object("Endpoint", name, spec, trafficSplit=split or {})


def make_model(**spec):
    versions = [
        {"name": "1", "artifactUri": "gs://models/photos/1"},
        {"name": "2", "aliases": ["candidate"], "artifactUri": "gs://models/photos/2"},
    ]
    return make_object("Model", "photos", {"defaultVersion": "1", "versions": versions, **spec})


def make_deployed_model(name="photos-1", version="1", replicas=1, endpoint="photos", cause="Progressing"):
    """A DeployedModel of which so many replicas answer; none does because of `cause`."""
    ready = {
        "type": "Ready",
        "status": str(replicas > 0),
        "reason": "Serving" if replicas else cause,
        "lastTransitionTime": "2026-11-22T11:00:00Z",
    }
    spec, status = {"endpoint": endpoint, "model": "photos"}, {"availableReplicaCount": replicas, "conditions": [ready]}
    return make_object("DeployedModel", name, spec, modelVersion=version, **status)


class World:
    """An API of which a test says what there is and who may predict."""

    def __init__(self):
        self.table = RouteTable(offers_private=True)
        self.gateway = Gateway.NONE
        self.rights = {(TOKEN, "endpoints", "team-a", "photos"), (TOKEN, "models", "team-a", "photos")}
        self.asked = []
        self.known = []  # tokens that were asked about
        self.pods = {}  # URLs by DeployedModel
        self.services = None
        self.tokens = []
        self.unready = ""
        self.metrics = Metrics()
        self.anonymous = None

    async def ask(self, token, asked):
        self.asked.append((token, asked))
        return (token, asked.resource, asked.namespace, asked.name) in self.rights

    async def ask_who(self, token):
        self.known.append(token)
        if token == "nobodys":
            raise UnauthenticatedError("the Kubernetes API does not take this token")
        return "alice@example.com"

    def make_services(self, token):
        self.tokens.append(token)
        return self.services

    def make_app(self, session):
        projects = Projects({"mapped": "team-a", "12345": "team-a"}, ["local", "us-central1"])
        identity, access = Identity(self.anonymous), Access(self.ask)
        return Application(
            Parts(
                identity=identity,
                authentication=Authentication(self.ask_who),
                projects=projects,
                authorizer=Authorizer(identity, access, projects, self.table),
                unrouted=Unrouted(self.table, projects, self.gateway),
                forwarder=Forwarder(session, self.table, self.metrics, lambda _, name: self.pods[name]),
                metrics=self.metrics,
                make_services=self.make_services,
                explain_unready=lambda: self.unready,
            )
        )


@pytest.fixture
async def world():
    return World()


@pytest.fixture
async def pods():
    async with connect_pods() as session:
        yield session


@asynccontextmanager
async def serving(handle):
    """A pod whose every path `handle` answers; its URL."""
    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", handle)
    async with TestServer(app) as there:
        yield str(there.make_url("")).rstrip("/")


@asynccontextmanager
async def listening(app):
    """An API behind a real listener; its URL."""
    settings = {"http": BoundedHttpProtocol, "log_config": None, "lifespan": "off", "ws": "none"}
    server = uvicorn.Server(uvicorn.Config(app, proxy_headers=False, **settings))
    # Of a socket that does not say TCP, asyncio leaves small packets waiting for each other.
    with socket.socket(proto=socket.IPPROTO_TCP) as port:
        port.bind(("127.0.0.1", 0))
        port.listen()  # who connects before the server is there waits for it
        task = asyncio.create_task(server._serve([port]))
        yield f"http://127.0.0.1:{port.getsockname()[1]}"
        server.should_exit = True
        await task
