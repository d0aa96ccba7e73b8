# Everything is set up by the targets themselves: a virtual environment in .venv, and, where make is
# root and the machine has a package manager that we know, the filesystems' programs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What the driver and the demo need, and what all the rest needs besides.
INSTALLED := $(VENV)/.installed
DEVELOPMENT := $(VENV)/.development
PROTO := csi_pb2.py csi_pb2.pyi csi_pb2_grpc.py

VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' src/pycsi/__init__.py)
REVISION = $(shell git describe --always --abbrev=40 --exclude='*' --dirty 2>/dev/null)
IMAGE ?= localhost/pycsi:$(VERSION)
ARCHIVE ?= build/pycsi.tar
# The first that works: a docker without its daemon does not. Looked for once, and only when needed.
CONTAINER_TOOL ?= $(eval CONTAINER_TOOL := $$(shell for tool in docker podman buildah; do \
	$$$$tool info >/dev/null 2>&1 && echo $$$$tool && break; done))$(CONTAINER_TOOL)

# Most tests wait for disks and mounts; each of the two processes has mounts of its own.
PARALLEL := --numprocesses 2 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test test-reliability soak bench lint proto sanity test-vm image image-archive manifests filesystems tools clean \
	release-check dist chart \
	kind kind-cluster kind-image kind-snapshots kind-install kind-demo kind-delete

help: ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(INSTALLED) filesystems ## Show the life of real volumes (as root: of every kind)
	$(BIN)/pycsi demo

test: $(DEVELOPMENT) tools ## Run all tests; as root, those that mount too
	$(BIN)/pytest $(PARALLEL)

test-reliability: $(DEVELOPMENT) tools ## Kill, fail, cut the power, race and fuzz at every point there is
	$(BIN)/pytest $(PARALLEL) --thorough tests/reliability

soak: $(DEVELOPMENT) tools ## Use a driver from 16 threads for ten minutes, and look for leaks
	$(BIN)/pytest --thorough tests/reliability/test_soak.py

bench: $(DEVELOPMENT) tools ## Measure the driver against floors taken in the same run
	$(BIN)/python benchmarks/bench.py

lint: $(DEVELOPMENT) ## Check style, types and, where actionlint is on PATH, workflows
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	@if command -v actionlint >/dev/null; then actionlint; \
	else echo "workflows are not checked: actionlint is not on PATH"; fi

proto: $(DEVELOPMENT) ## Generate src/pycsi/proto from csi.proto and the others
	$(BIN)/python -m grpc_tools.protoc -Ipycsi/proto=. --python_out=src --pyi_out=src \
		--grpc_python_out=src csi.proto exchange.proto groups.proto transfers.proto

sanity: $(DEVELOPMENT) tools ## Run the csi-sanity that is on PATH against every kind of volume
	@command -v csi-sanity >/dev/null || { echo "csi-sanity is not on PATH: build it from \
	github.com/kubernetes-csi/csi-test and put it there"; exit 1; }
	$(BIN)/pytest tests/sanity -v

test-vm: $(DEVELOPMENT) tools ## Run the system tests on the distribution's kernel, or KERNEL, under qemu
	@.ci/install-packages qemu-system-x86_64 busybox cryptsetup strace
	$(BIN)/python tests/vm/boot.py --timeout 7200 $(if $(KERNEL),--kernel $(KERNEL)) -- \
		python3 -m pytest -p no:cacheprovider $(PYTESTFLAGS) $(or $(TESTS),tests/vm)

image: ## Build the container image; PLATFORM=linux/arm64 is for another processor
	@test -n "$(CONTAINER_TOOL)" || { echo "no docker, podman or buildah works here"; exit 1; }
	$(CONTAINER_TOOL) build --tag $(IMAGE) --build-arg VERSION=$(VERSION) \
		--build-arg REVISION=$(REVISION) $(if $(PLATFORM),--platform $(PLATFORM)) $(BUILD_FLAGS) .
	@echo "$(IMAGE): $$($(CONTAINER_TOOL) images --format '{{.Size}}' $(IMAGE))"

image-archive: image ## Build the image and write it to build/pycsi.tar
	@mkdir -p $(dir $(ARCHIVE)) && rm -f $(ARCHIVE)
	$(CONTAINER_TOOL) $(if $(findstring buildah,$(CONTAINER_TOOL)), \
		push $(IMAGE) docker-archive:$(ARCHIVE):$(IMAGE), save --output $(ARCHIVE) $(IMAGE))

manifests: $(DEVELOPMENT) ## Make deploy/kubernetes and deploy/monitoring from the Helm chart
	$(BIN)/python deploy/kubernetes/render.py

# In the environment, and not in a command: a tag can hold what a shell would run.
export TAG
release-check: ## Say what is inconsistent before a release; TAG=v1.2.3 is the one to come
	@$(PYTHON) deploy/release/check.py

dist: $(DEVELOPMENT) ## Build wheel and sdist in dist/
	@rm -rf dist
	$(BIN)/python -m build --outdir dist

REPOSITORY ?= localhost/pycsi
SOURCE ?=
chart: ## Package the chart, with the image of REPOSITORY, as build/pycsi-VERSION.tgz
	@command -v helm >/dev/null || { echo "helm is not on PATH: install it first"; exit 1; }
	@$(PYTHON) deploy/release/chart.py "$(REPOSITORY)" build/chart/pycsi "$(SOURCE)"
	helm package build/chart/pycsi --destination build

MODE ?= single-node
KIND = MODE=$(MODE) IMAGE=$(IMAGE) ARCHIVE=$(ARCHIVE) deploy/kind/kind.sh

kind: kind-cluster kind-image kind-snapshots kind-install kind-demo ## All of it in kind; MODE=distributed takes several nodes

kind-cluster: ## Create a kind cluster in whose nodes loop devices work
	@$(KIND) cluster

kind-image: image-archive ## Build the image and load it into the kind cluster
	@$(KIND) load

kind-snapshots: ## Install the snapshot CRDs in the kind cluster
	@$(KIND) snapshots

kind-install: ## Install the chart in the kind cluster
	@$(KIND) install

kind-demo: ## Run the demos in the kind cluster
	@$(KIND) demo

kind-delete: ## Delete the kind cluster, with its volumes
	@$(KIND) delete

filesystems:
	@.ci/install-packages mkfs.ext4 mkfs.xfs mkfs.btrfs

# The image's tests run where there is a builder; nobody but CI gets one installed unasked.
tools: filesystems
	@.ci/install-packages strace openssl $(if $(CI),buildah debootstrap promtool restic)

$(INSTALLED): pyproject.toml
	@.ci/install-packages venv
	@echo "Installing the driver into $(VENV): 65 MB ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(DEVELOPMENT): $(INSTALLED)
	@echo "Installing what tests and checks need into $(VENV): 475 MB, half a minute ..."
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -m pip install --quiet --group dev
	@touch $@

clean: ## Remove what make has made
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
