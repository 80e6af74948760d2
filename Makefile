# The only place that knows commands. `make help` lists them.
SHELL := /bin/bash
PYTHON ?= python3
CACHE := $(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/finetune-operator
# Prints the path of the pinned uv, installed on first use.
UV = $(PYTHON) -m hack.images.uv
VENV := .venv
PY := $(VENV)/bin/python
export PYTHONDONTWRITEBYTECODE := 1

##@ General

.PHONY: help
help: ## Print this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z0-9-]+( [a-z0-9-]+)*:.*## / {gsub(" test-", "|", $$1); \
	  if (length($$1) > 18) $$1 = $$1 "\n" sprintf("%20s", ""); \
	  printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: clean
clean: ## Remove the cluster, the environment and reports; caches and Debian packages stay
	@$(PYTHON) -m hack.cluster down
	@rm -rf $(VENV) .cluster demo-report.json chaos-report.md .pytest_cache .mypy_cache .ruff_cache \
	  .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: clean-cache
clean-cache: cluster-down ## Stop the cluster and remove the caches (the next run is a cold one)
	@rm -rf "$(CACHE)" /run/finetune-operator-buildah

##@ Run

.PHONY: demo
demo: $(VENV)/.ready ## Bring up a cluster, fine-tune a real model, query the served result
	@$(PY) -m hack.demo run

.PHONY: run
run: $(VENV)/.ready ## Run the operator here against your kubeconfig (ARGS="--trainer-image … --serving-image …")
	@PYTHONPATH=operator $(PY) -m finetune_operator --log-format text $(ARGS)

.PHONY: cluster
cluster: $(VENV)/.ready ## Bring up the local two-node cluster (kind where Docker runs)
	@$(PY) -m hack.cluster up

.PHONY: cluster-down
cluster-down: ## Take the local cluster down
	@$(PYTHON) -m hack.cluster down

.PHONY: images
images: $(VENV)/.ready ## Build the images and load them into the local cluster
	@$(PY) -m hack.images load

.PHONY: images-product
images-product: $(VENV)/.ready ## Build the images that users run, from their Dockerfiles
	@$(PY) -m hack.images product

##@ Develop

.PHONY: one
one: $(VENV)/.ready ## Run one test: T="tests/unit/jobs/test_suspend.py -k resume", or below tests/trainer
	@$(PY) -m hack.suite one $(if $(T),$(T),$(error name a test: make one T=tests/unit/jobs/test_plan.py))

.PHONY: format
format: $(VENV)/.ready ## Format the code
	@$(VENV)/bin/ruff check --fix -q . ; $(VENV)/bin/ruff format -q .

.PHONY: crds
crds: $(VENV)/.ready ## Generate crds/, the chart's copy, and the generated pages of docs/
	@PYTHONPATH=operator $(PY) -m finetune_api.crd

.PHONY: charts
charts: $(VENV)/.ready ## Generate the chart's README and docs/reference/network-policies.yaml
	@$(PY) -m hack.charts

COMPILE = "$$(cd "$(CURDIR)" && $(UV))" pip compile --quiet --generate-hashes --no-emit-index-url --no-header --python-version 3.11
.PHONY: lock
lock: ## Resolve every requirements file again, with hashes
	@$(COMPILE) --upgrade operator/requirements.in -o operator/requirements.lock
	@$(COMPILE) --upgrade trainer_image/requirements.in -o trainer_image/requirements.lock
	@for name in dev trainer-test; do \
	  $(COMPILE) --upgrade requirements/$$name.in -o requirements/$$name.lock; done
	@for name in kserve chat-templates; do \
	  $(COMPILE) --upgrade --no-deps requirements/$$name.in -o requirements/$$name.lock; done
	@cd hack/demo && $(COMPILE) --upgrade --no-deps model.in -o model.lock
	@$(PYTHON) -m hack.images lock

##@ Test

.PHONY: test
test: $(VENV)/.ready ## Run the whole suite, on a real cluster too; prints the time of each part
	@$(PY) -m hack.suite

.PHONY: test-lint test-unit test-sim test-api test-trainer test-images test-cluster test-e2e
test-lint test-unit test-sim test-api test-trainer test-images test-cluster test-e2e: $(VENV)/.ready ## Run one part of the suite
	@$(PY) -m hack.suite $(@:test-%=%)

##@ Test more (minutes to hours; each prints a table or a count)

.PHONY: e2e-training
e2e-training: $(VENV)/.ready ## Train sharded over two nodes and one job after another, on a real cluster
	@$(PY) -m pytest tests/e2e/test_training.py -s -o timeout=2400

.PHONY: e2e-platforms
e2e-platforms: $(VENV)/.ready ## Run jobs under quotas, network policies, with sidecars, and on tainted nodes, on a real cluster
	@$(PY) -m pytest tests/e2e/test_platforms.py tests/e2e/test_network_policies.py tests/e2e/test_bad_input.py \
	  -k "platforms or network_policies or refused" -s -o timeout=2400

.PHONY: matrix
matrix: $(VENV)/.ready ## Train every method x objective x strategy that is allowed, and every architecture
	@FINETUNE_MATRIX=all $(PY) -m hack.suite matrix

.PHONY: kills
kills: $(VENV)/.ready ## Kill a rank at twenty random moments and resume
	@FINETUNE_KILLS=20 $(PY) -m hack.suite kills

.PHONY: chaos
chaos: $(VENV)/.ready ## Inject every fault into the real cluster while a job trains
	@$(PY) -m hack.suite chaos

.PHONY: sim
sim: N ?= 10000
sim: $(VENV)/.ready ## Simulate N random histories of a cluster in memory (SEED=, REPLAY= to repeat one)
	@PYTHONPATH=.:operator $(PY) -m tests.sim --histories $(N) \
	  $(if $(SEED),--seed $(SEED)) $(if $(REPLAY),--replay $(REPLAY))

.PHONY: fuzz
fuzz: N ?= 5000
fuzz: $(VENV)/.ready ## Read N damaged data files and N statuses of pods; send N specs of each kind to an API server and the planner (SEED= to repeat)
	@FINETUNE_FUZZ=$(N) $(PY) -m pytest tests/unit/jobs/test_hostile_pods.py \
	  -k any_status --hypothesis-seed=$(or $(SEED),0) -o timeout=86400
	@FINETUNE_FUZZ=$(N) FINETUNE_FUZZ_SEED=$(or $(SEED),0) $(PY) -m hack.suite fuzz-files
	@FINETUNE_FUZZ=$(N) FINETUNE_FUZZ_SEED=$(or $(SEED),0) \
	  $(PY) -m pytest tests/api/fuzz -s -o timeout=86400

.PHONY: mutants
mutants: $(VENV)/.ready ## Break the operator in about seventy ways and count what the tests detect
	@$(PY) -m hack.suite mutants

##@ Benchmarks (each against a baseline in the same run)

.PHONY: bench
bench: $(VENV)/.ready ## Benchmark the operator
	@for name in $(filter-out trainer precision cold_start call_chains,$(basename $(notdir $(wildcard tests/bench/*.py)))); do \
	  echo "== $$name"; PYTHONPATH=.:operator $(PY) tests/bench/$$name.py; done

.PHONY: bench-call-chains
bench-call-chains: $(VENV)/.ready ## Count the files and returns of the flows in docs/architecture.md
	@PYTHONPATH=.:operator $(PY) tests/bench/call_chains.py
	@PYTHONPATH=.:operator:trainer_image:$$($(PY) -m hack.suite.environments) \
	  "$$($(PY) -m hack.images venv)" tests/bench/call_chains.py --trainer

.PHONY: bench-trainer
bench-trainer: $(VENV)/.ready ## Compare the trainer with TRL, LLaMA-Factory and a hand-written loop
	@PYTHONPATH=.:operator $(PY) -m tests.bench.trainer

.PHONY: bench-precision
bench-precision: $(VENV)/.ready ## Compare the learning curves in bf16, fp32 and with Auto
	@PYTHONPATH=.:operator $(PY) -m tests.bench.precision

.PHONY: bench-cold-start
bench-cold-start: $(VENV)/.ready ## Measure how long a cold trainer takes to its first step
	@PYTHONPATH=.:operator:trainer_image "$$($(PY) -m hack.images venv)" -m tests.bench.cold_start

$(VENV)/.ready: requirements/dev.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "$(PYTHON) is not Python 3.11 or newer: name one, make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Installing the development environment into $(VENV)"
	@set -e; uv=$$($(UV)); \
	  "$$uv" venv --quiet --clear --python "$$(command -v $(PYTHON))" $(VENV); \
	  "$$uv" pip install --quiet --python $(PY) --require-hashes -r requirements/dev.lock
	@touch $@
