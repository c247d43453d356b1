# Everything a person types here. Each target installs what it needs; `make help` lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Keeps the current folder off sys.path: a folder named like a standard module must never shadow it.
export PYTHONSAFEPATH := 1
# Tests run with one thread of tensor maths each, so that timings inside do not depend on the machine.
export OMP_NUM_THREADS ?= 1

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "twolane needs Python 3.11 or newer; '$(PYTHON)' is older or missing. Try: make PYTHON=python3.12 ..." >&2; \
		exit 1; }
	$(PYTHON) -m venv $(VENV) || { \
		echo "could not make a virtual environment; on Debian: apt-get install python3-venv" >&2; exit 1; }

# The stamps make an install happen once, and again when the pins or the dependencies change.
$(VENV)/installed: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt hatchling
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e .
	@touch $@

$(VENV)/installed-dev: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt hatchling
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@ $(VENV)/installed

.PHONY: install
install: $(VENV)/installed ## install twolane into .venv

.PHONY: setup
setup: $(VENV)/installed-dev ## install twolane and the tools for working on it into .venv

.PHONY: up
up: $(VENV)/installed ## start everything on this machine (FLAGS="--port 9001 --model DIR ...")
	@exec $(BIN)/twolane up $(FLAGS)

.PHONY: chat
chat: $(VENV)/installed ## talk to what `make up` started (FLAGS="--url ...")
	@exec $(BIN)/twolane chat $(FLAGS)

.PHONY: redis
redis: # the tests of the shared state run against a real server
	@command -v redis-server >/dev/null || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends redis-server >/dev/null; \
		else \
			echo "the tests need redis-server on the PATH; on Debian: sudo apt-get install redis-server" >&2; exit 1; \
		fi; }

.PHONY: check
check: lint types layers test ## everything that must pass before a change lands

.PHONY: lint
lint: $(VENV)/installed-dev ## lint and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: $(VENV)/installed-dev ## strict type check
	$(BIN)/mypy services/src operator/src proto kernels/src tests deploy

.PHONY: layers
layers: $(VENV)/installed-dev ## who may import whom
	$(BIN)/lint-imports

.PHONY: test
test: $(VENV)/installed-dev redis ## tests without GPU and cluster (FLAGS="tests/cli -k up")
	$(BIN)/pytest $(FLAGS)

# Nothing is installed: a machine with a device may reach no package index.
.PHONY: gpu-check
gpu-check: ## all that needs a CUDA device: tests, kernel and engine benchmarks (FLAGS="--only kernel-tests")
	@exec $(or $(wildcard $(BIN)/python),$(PYTHON)) deploy/gpu_check.py $(FLAGS)

.PHONY: cluster-check
cluster-check: $(VENV)/installed-dev ## tests that need a Kubernetes API server (built once, with Go)
	@command -v go >/dev/null || { echo "cluster-check: Go builds the API server and is not on the PATH" >&2; exit 1; }
	$(if $(filter command line,$(origin KUBECONFIG)),TWOLANE_TEST_KUBECONFIG=$(abspath $(KUBECONFIG))) \
		$(BIN)/pytest -m cluster $(FLAGS)

# The full image for CUDA has the plain tag; docker and podman take the same flags as buildah.
BUILDER ?= $(or $(shell command -v buildah),$(shell command -v podman),docker)
TARGETS ?= control cpu cuda
TAG ?= $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' pyproject.toml)

.PHONY: images
images: ## build the container images (TARGETS="control cpu" TAG=dev FLAGS="--build-arg PYTHON_IMAGE=...")
	@for target in $(TARGETS); do \
		tag=$(TAG)-$$target; [ $$target != cuda ] || tag=$(TAG); \
		$(BUILDER) build --file deploy/images/Dockerfile --target $$target --tag twolane:$$tag \
			$(if $(findstring buildah,$(BUILDER)),--layers --ignorefile deploy/images/Dockerfile.dockerignore) $(FLAGS) .; \
	done

.PHONY: node-check
node-check: $(VENV)/installed-dev ## tests of the whole product on real nodes (root, Go; or KUBECONFIG=FILE IMAGE=REFERENCE)
	$(if $(filter command line,$(origin KUBECONFIG)),TWOLANE_TEST_KUBECONFIG=$(abspath $(KUBECONFIG)) TWOLANE_TEST_IMAGE=$(IMAGE)) \
		$(BIN)/pytest -m node $(FLAGS)

.PHONY: node-images-check
node-images-check: $(VENV)/installed-dev ## the built images on a real node (root; TARGETS="control cpu" TAG=dev, as built by `make images`)
	TWOLANE_TEST_TAG=$(TAG) TWOLANE_TEST_TARGETS="$(filter-out cuda,$(TARGETS))" $(BIN)/pytest -m images $(FLAGS)

.PHONY: keda-check
keda-check: $(VENV)/installed-dev ## pools scaled by KEDA and HPAs under real load (root; builds KEDA and Prometheus once, with Go)
	@PYTHONPATH=. $(BIN)/python -m deploy.cluster build keda keda-adapter keda.yaml prometheus external-metrics
	$(BIN)/pytest -m scalers -rP $(FLAGS)

.PHONY: node-up
node-up: $(VENV)/installed-dev ## a cluster with two real nodes on this machine, as root, to play with
	@exec env PYTHONPATH=. $(BIN)/python -m deploy.cluster node-up

.PHONY: proto
proto: $(VENV)/installed-dev ## generate the stubs beside the .proto files
	$(BIN)/python proto/generate.py

.PHONY: format
format: $(VENV)/installed-dev ## format the code and sort imports
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

.PHONY: bench
bench: $(VENV)/installed ## replay a generated load against http://127.0.0.1:8000 (FLAGS="--url ... --trace ...")
	@exec $(BIN)/twolane bench serve $(FLAGS)

.PHONY: policies
REQUESTS ?= 1000
OUT ?= results/policies
PARTS ?= mix63 mix80 azure2023_code mooncake_conversation
policies: $(VENV)/installed ## compare all policies in simulation, and go on where it ended (TRACES="FILE ..." OUT=... FLAGS="--minutes 30")
	$(BIN)/twolane bench policies --requests $(REQUESTS) --traces $(TRACES) --out $(OUT)/all $(FLAGS)
	$(BIN)/twolane bench policies --requests $(REQUESTS) --ablation --prefill-workers 3 --loads 1.0 0.7 0.9 \
		--traces $(TRACES) --workloads $(PARTS) --out $(OUT)/ablation $(FLAGS)

.PHONY: pins
pins: $(VENV)/installed-dev ## write constraints.txt from what .venv holds now
	$(BIN)/pip freeze --disable-pip-version-check --exclude-editable | grep -E '^[A-Za-z0-9_.-]+==[^ @]+$$' > constraints.txt

.PHONY: clean
clean: ## remove caches; the environment stays
	rm -rf .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find services operator proto kernels tests deploy -name __pycache__ -type d -prune -exec rm -rf {} +
