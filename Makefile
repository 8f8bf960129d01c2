PYTHON := .venv/bin/python
UV := .uv/bin/uv
NODE_CLIENT := tests/e2e/clients/node/node_modules/.package-lock.json

.PHONY: quickstart binaries predictions test preflight unit e2e in-cluster chaos docs fmt lint crds dashboards manifests images cluster-up cluster-down bench bench-server bench-batch bench-operator bench-api lock

quickstart: preflight  ## a classifier on a real Kubernetes, answering photographs
	@$(MAKE) --no-print-directory --jobs=2 binaries predictions

# Go compiles while Python's packages are downloaded.
binaries:
	@test "$(CLUSTER)" = current || python3 -m cluster.go_build

predictions: .venv/installed
	$(PYTHON) -m cluster quickstart

test: preflight lint docs unit e2e  ## everything

preflight:  ## whether a cluster can run on this machine
	@test "$(CLUSTER)" = current || python3 -m cluster.host

unit: .venv/installed  ## what needs no cluster
	$(PYTHON) -m pytest tests/unit --numprocesses 3 --dist loadfile

e2e: preflight .venv/installed  ## what needs one: it is started, and ended if it was not there before
	$(PYTHON) -m pytest tests/cluster
	$(PYTHON) -m cluster run -- $(MAKE) in-cluster

in-cluster: .venv/installed $(NODE_CLIENT)  ## what runs in the cluster of $$KUBECONFIG: side by side, but for what changes the cluster
	$(PYTHON) -m pytest tests/apiserver tests/e2e -m "not exclusive" --numprocesses 3 --dist loadfile
	$(PYTHON) -m pytest tests/apiserver tests/e2e -m exclusive

chaos: preflight .venv/installed  ## predictions under all that a platform team does
	$(PYTHON) -m cluster run -- $(PYTHON) -m pytest tests/chaos -s

lint: .venv/installed  ## ruff, mypy
	$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check . && $(PYTHON) -m mypy

docs: .docs/installed  ## the site of docs/ in build/site; fails where a link leads nowhere
	.docs/bin/zensical build --clean --strict

fmt: .venv/installed  ## format
	$(PYTHON) -m ruff check --fix . && $(PYTHON) -m ruff format .

crds: .venv/installed  ## crds/ and docs/resources.md from types.py
	$(PYTHON) -m pierhead_operator.crd crds && $(PYTHON) -m pierhead_operator.reference docs/resources.md

dashboards: .venv/installed  ## charts/pierhead/files/dashboards from charts/dashboards.py
	$(PYTHON) -m charts.dashboards charts/pierhead/files/dashboards

manifests: .venv/installed  ## config/default from the chart
	$(PYTHON) -m charts.manifests config/default/pierhead.yaml

images: .venv/installed  ## the image of the operator and the API, and both of the server
	$(PYTHON) -m cluster images

cluster-up: preflight .venv/installed  ## a one-node Kubernetes on this machine
	$(PYTHON) -m cluster up

cluster-down: .venv/installed  ## and away with it
	$(PYTHON) -m cluster down

bench: .venv/installed  ## the figures of docs/performance.md
	$(PYTHON) -m bench.loops

bench-server: .venv/installed  ## the model server beside a raw PyTorch loop, LitServe, BentoML and Triton
	$(PYTHON) -m bench.server --peer litserve --peer bentoml --peer triton

bench-batch: .venv/installed  ## the batch worker beside a raw PyTorch loop
	$(PYTHON) -m bench.batch

bench-operator: .venv/installed  ## the operator with 5,000 DeployedModels, on a control plane of its own
	$(PYTHON) -m bench.operator

bench-api: .venv/installed  ## the API with 1,000 endpoints and 10,000 jobs, on a control plane of its own, and what forwarding adds
	$(PYTHON) -m bench.api

lock: .uv/installed  ## requirements/*.txt from pyproject.toml
	sh requirements/lock.sh $(UV)

$(NODE_CLIENT): tests/e2e/clients/node/package-lock.json
	cd $(<D) && npm ci --no-audit --no-fund --ignore-scripts && touch $(@:$(<D)/%=%)

.uv/installed: requirements/uv.txt
	python3 -m venv .uv && .uv/bin/pip install --quiet --require-hashes -r $< && touch $@

.docs/installed: .uv/installed requirements/docs.txt
	$(UV) venv --quiet --allow-existing --python python3 .docs && $(UV) pip sync --quiet --python .docs --require-hashes requirements/docs.txt && touch $@

# With bytecode: hundreds of processes of the tests import torch.
.venv/installed: .uv/installed requirements/dev.txt pyproject.toml
	$(UV) venv --quiet --allow-existing --python python3 .venv && $(UV) pip sync --quiet --compile-bytecode --python .venv --require-hashes requirements/dev.txt
	$(UV) pip install --quiet --python .venv --no-deps --no-build-isolation --editable . && touch $@
