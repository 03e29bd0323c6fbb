# Every target sets up what it needs on a fresh machine and says what it does.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CRD := crds/multimodel.dev_multimodels.yaml
CHART_CRD := charts/multimodel/files/crd.yaml

.PHONY: help up test check e2e bench bench-router bench-router-faults bench-operator bench-gpu test-gpu soak crds cluster system-packages clean

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 22

$(VENV)/.runtime: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "MultiModel needs Python 3.11 or newer; run: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "Creating a virtual environment in $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing the packages that serving needs (torch is about 3 GB the first time)"
	$(BIN)/pip install -c constraints.txt -e '.[router,modelserver,client]'
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@echo "Installing the packages that development needs"
	$(BIN)/pip install -c constraints.txt -e '.[dev]'
	@touch $@

up: $(VENV)/.runtime ## serve examples/quickstart.yaml on 127.0.0.1:1234
	@$(BIN)/multimodel up examples/quickstart.yaml

test: $(VENV)/.dev ## unit, parity and API-server tests (no root, no GPU)
	@$(BIN)/python -m multimodel_testbed build --control-plane-only
	$(BIN)/python -m pytest -m 'not cluster and not gpu' --numprocesses=2 --dist=loadfile

check: $(VENV)/.dev ## formatting, lint, types, import contracts, generated files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(BIN)/python -m multimodel_api.crd | diff -u $(CRD) - && diff -u $(CRD) $(CHART_CRD) \
	  || { echo "The CRD is not up to date; run: make crds" >&2; exit 1; }

crds: $(VENV)/.dev ## write the CRD from multimodel_api.manifest
	$(BIN)/python -m multimodel_api.crd > $(CRD)
	cp $(CRD) $(CHART_CRD)

system-packages: ## install the Debian packages that the test cluster and the browser tests need (root)
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	  buildah chromium chromium-driver containernetworking-plugins containers-storage debootstrap iproute2 mount nftables openssl prometheus runc

e2e: $(VENV)/.dev ## end-to-end tests on a real node (root, Debian; see CONTRIBUTING.md)
	@$(BIN)/python -m multimodel_testbed build
	$(BIN)/python -m pytest -m cluster tests/testbed tests/router tests/cluster

cluster: $(VENV)/.dev ## leave a real one-node cluster running and print its kubeconfig
	@$(BIN)/python -m multimodel_testbed build
	@$(BIN)/python -m multimodel_testbed up

bench: $(VENV)/.dev ## measure: prints tables and one JSON line each
	$(BIN)/python benches/engine.py

bench-router: $(VENV)/.dev ## measure the router beside its peers (two cores, Go; nine minutes)
	$(BIN)/python benches/router.py

bench-router-faults: $(VENV)/.dev ## break things around two routers and count what is lost (25 minutes)
	$(BIN)/python benches/router_faults.py

bench-operator: $(VENV)/.dev ## measure the operator with 1, 100 and 1000 MultiModels
	$(BIN)/python benches/operator_scale.py

bench-gpu: $(VENV)/.dev ## measure the GPU path against its floors (one CUDA device, 29 GB of disk; 8 minutes)
	$(BIN)/python benches/gpu.py --log

test-gpu: $(VENV)/.dev ## correctness on a CUDA device: kernels, graphs, greedy tokens, sleep
	$(BIN)/python -m pytest tests/modelserver/gpu tests/modelserver/kernels

soak: $(VENV)/.dev ## ten minutes of ill-behaved clients: leaks, hangs and losses
	$(BIN)/python benches/soak.py

clean: ## remove the virtual environment and caches in the checkout
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
