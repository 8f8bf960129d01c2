"""A cluster that keeps its objects in a dictionary, and what else reconciles are given in tests."""

from copy import deepcopy

from pierhead_operator.cluster import Cluster, Conflict, Invalid, Rejected
from pierhead_operator.feed import OWN_KINDS
from pierhead_operator.names import OURS
from pierhead_operator.resources import NETWORK_POLICY, SERVING_KINDS
from pierhead_operator.routing import ROUTE_KINDS
from pierhead_operator.store import Store

from tests.unit.operator.conftest import NOW

WATCHED = OWN_KINDS | SERVING_KINDS | {NETWORK_POLICY, "Job", "Pod"} | frozenset().union(*ROUTE_KINDS.values())


class Clock:
    def __init__(self):
        self.now = NOW

    def __call__(self):
        return self.now


class FakeProber:
    """Pods answer, unless it is told what they say instead. Fake because there are no pods."""

    def __init__(self):
        self.silence = None
        self.asked = []
        self.words = {}  # of pods that are not ready, by name
        self.unready = {}  # those that were asked last

    async def ask_readiness(self, key, pods):
        self.unready = pods
        return {name: self.words[name] for name in pods if name in self.words}

    async def ask(self, namespace, deployed_model):
        self.asked.append((namespace, deployed_model))
        return self.silence

    def find_pause(self, namespace, deployed_model):
        return 2.0


def _check_service(live, manifest):
    """As the API server does: a Service keeps the address that it was made with, and what others wrote beside it."""
    address = live["spec"].get("clusterIP")
    if manifest["spec"].get("clusterIP", address) != address and live["spec"].get("type") != "ExternalName":
        raise Rejected("spec.clusterIP: field is immutable")
    if "loadBalancerSourceRanges" in live["spec"] and manifest["spec"]["type"] != "LoadBalancer":
        raise Invalid("spec.LoadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'")


class FakeCluster:
    """Objects by kind and name; `calls` has every write.

    Reads are those of the real class, from a real store that was told all that watches tell. Writes are fake because
    there is no API server: tests/apiserver has one.
    """

    def __init__(self, *objects):
        self.objects = {(o["kind"], o["metadata"]["name"]): deepcopy(o) for o in objects}
        self.calls = []
        self.rejects = {}  # by kind: the error of an apply
        self.untaken = set()  # kinds whose status the API server can never take
        self.mutate = lambda _: None  # what a webhook does to an object that is applied

    def refuse(self, kind, error=None):
        """Every apply of this kind fails from now on."""
        self.rejects[kind] = error or Rejected("exceeded quota")

    def watched(self):
        """As the operator knows the cluster."""
        store = Store(WATCHED)  # it keeps copies
        for (kind, _), live in self.objects.items():
            if kind in OWN_KINDS or OURS.items() <= live["metadata"].get("labels", {}).items():
                metadata = {"namespace": "default", "resourceVersion": "1", **live["metadata"]}
                store.put(kind, {"apiVersion": "v1", **live, "metadata": metadata})
        return Cluster(None, store=store)

    async def get(self, kind, namespace, name):
        return await self.watched().get(kind, namespace, name) if kind in WATCHED else None

    async def fetch(self, kind, namespace, name):
        found = self.objects.get((kind, name))
        return found if found and found["metadata"].get("namespace", "default") == namespace else None

    async def list_objects(self, kind, namespace, labels=None):
        return await self.watched().list_objects(kind, namespace, labels)

    async def get_resource(self, kind, namespace, name):
        return await self.watched().get_resource(kind, namespace, name)

    async def list_deployed_models(self, namespace, label, name):
        return await self.watched().list_deployed_models(namespace, label, name)

    def find_public_servers(self, namespace, model):
        return self.watched().find_public_servers(namespace, model)

    def is_routed(self, kinds, namespace, service):
        return self.watched().is_routed(kinds, namespace, service)

    async def apply(self, manifest, live=None):
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        if kind in self.rejects:
            raise self.rejects[kind]
        if live is None and (kind, name) in self.objects:
            raise Conflict("it is there")
        self.calls.append(("apply", kind, name))
        before = self.objects.get((kind, name), {})
        if kind == "Service" and before:
            _check_service(before, manifest)
        self.objects[kind, name] = {**before, **deepcopy(manifest)}
        self.objects[kind, name]["metadata"] |= {"uid": f"uid-{name}", "generation": 1}
        self.mutate(self.objects[kind, name])
        return self.objects[kind, name]

    async def patch(self, live, changes):
        key = live["kind"], live["metadata"]["name"]
        if key[0] in self.rejects:
            raise self.rejects[key[0]]
        self.calls.append(("patch", *key))
        merge(self.objects[key], changes)
        self.mutate(self.objects[key])
        return self.objects[key]

    async def apply_status(self, resource, status):
        if resource.KIND in self.rejects:
            raise self.rejects[resource.KIND]
        if resource.KIND in self.untaken:
            return False
        self.calls.append(("status", resource.KIND, resource.name))
        self.objects[resource.KIND, resource.name]["status"] = status.dump()
        return True

    async def apply_raw_status(self, key, uid, status):
        self.calls.append(("status", key.kind, key.name))
        assert self.objects[key.kind, key.name]["metadata"]["uid"] == uid
        self.objects[key.kind, key.name]["status"] = status
        return True

    async def delete(self, live):
        self.calls.append(("delete", live["kind"], live["metadata"]["name"]))
        del self.objects[live["kind"], live["metadata"]["name"]]

    async def create_event(self, resource, event):
        self.calls.append(("event", resource.KIND, event.reason))

    def collect_garbage(self, gone):
        """As Kubernetes does once an owner is gone."""
        for key, live in list(self.objects.items()):
            owners = live["metadata"].get("ownerReferences", [])
            left = [owner for owner in owners if owner["uid"] != gone]
            if owners and not left:
                del self.objects[key]
            elif owners:
                live["metadata"]["ownerReferences"] = left

    def is_true(self, key, type_):
        conditions = self.objects[key.kind, key.name]["status"]["conditions"]
        return next(c["status"] for c in conditions if c["type"] == type_) == "True"

    def ready(self, key):
        conditions = self.objects[key.kind, key.name]["status"]["conditions"]
        return next((c["status"], c["reason"]) for c in conditions if c["type"] == "Ready")


def merge(live, changes):
    """As a merge patch does."""
    for name, value in changes.items():
        if isinstance(value, dict):
            merge(live.setdefault(name, {}), value)
        elif value is None:
            live.pop(name, None)
        else:
            live[name] = value
