# Penstock's commands. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# Any Python from 3.11 to 3.13 will do; the first one found is used.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do command -v $$p >/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
RECIPE ?= recipes/carry
SEEDS ?= 0 1 2

# One thread per process: actors share the cores, and two threads in one of them only wait for each other.
export OMP_NUM_THREADS ?= 1
# DeepSpeed compiles a small operation once per machine; keep it where the next run finds it.
export TORCH_EXTENSIONS_DIR ?= $(HOME)/.cache/penstock/torch_extensions
export DS_ACCELERATOR ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: help setup programs demo test engines runs stories chaos check exact proofs figures unit bad-input lint types imports curve grafana constraints constraints-cuda alerts manifests audit clean

help: ## list these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: ## make the virtual environment (CPU or CUDA, whichever the machine has)
	@test -n "$(PYTHON)" || { echo "no Python found: install Python 3.11, or name one with make PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) scripts/setup_env.py --venv $(VENV) --dev

programs: ## what the tests drive and pip does not have: a real Prometheus, a real browser
	-@scripts/system_packages.sh --venv $(VENV)

demo: setup ## make a small model, teach it a little, train it with asynchronous GRPO, say whether it learned
	@$(BIN)/python $(RECIPE)/demo.py $(DEMO_ARGS)

test: setup programs unit engines runs ## units, real engines, whole runs (about 20 minutes on two cores); `make stories` has the long ones

# One process for each engine: vLLM and DeepSpeed both own what torch knows of distributed processes.
engines:
	@echo "[test] the learner on DeepSpeed" && $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "engine and not slow" tests/learner
	@echo "[test] rollout on vLLM" && $(BIN)/python -m pytest -q -m "engine and not slow" --ignore=tests/learner

runs:
	@echo "[test] whole runs" && $(BIN)/python -m pytest -q -m "slow and not story" tests/runs tests/chaos

stories: setup programs ## whole runs with people and accidents in them, too long for every change (about half an hour)
	@$(BIN)/python -m pytest -q -m story

chaos: setup ## kill the parts of a run at random and check its books: docs/chaos.md (CHAOS_ARGS="--kills 200 --seed 0")
	@PYTHONPATH=tests:. $(BIN)/python -m chaos $(CHAOS_ARGS)

check: setup programs lint types imports unit ## lint, strict types, import contracts, unit tests

lint:
	@echo "[check] lint and format" && $(BIN)/ruff check . && $(BIN)/ruff format --check .

types:
	@echo "[check] types" && $(BIN)/mypy

imports:
	@echo "[check] import contracts" && $(BIN)/lint-imports

# Three processes on two cores: many of these tests wait, for leases and deadlines to end.
unit:
	@echo "[check] unit tests" && $(BIN)/python -m pytest -q -n 3 --dist loadfile -m "not engine and not slow"

bad-input: ## write docs/bad-input.md anew with what is really said (as root, who may mount a small disk)
	@PYTHONPATH=.:tests:tests/deploy $(BIN)/python tests/deploy/bad_input.py

exact: setup ## compare every estimator's expectation with the exact gradient: docs/exact-gradients.md
	@$(BIN)/python -m benchmarks.exact

proofs: setup ## the long measurements behind docs/: learning curves of every row, the staleness study, audits (hours)
	@$(BIN)/python -m benchmarks.staleness_study
	@$(BIN)/python -m benchmarks.learning
	@$(BIN)/python -m benchmarks.audit

figures: ## write docs/figures.md from the lines that the benchmarks have kept in benchmarks/results
	@$(BIN)/python -m benchmarks.table

curve: setup ## run the demo for several seeds and draw docs/learning-curve.png (SEEDS="0 1 2")
	@$(BIN)/python $(RECIPE)/demo.py --seeds $(SEEDS) --curve docs/learning-curve.png

grafana: ## write deploy/grafana/dashboards from scripts/grafana/boards.py
	@$(BIN)/python -m scripts.grafana

constraints: ## write constraints-cpu.txt from what is installed
	@{ echo "# What scripts/setup_env.py installs on a machine without an NVIDIA GPU. Made by: make constraints"; \
	   $(BIN)/python -m pip freeze --exclude-editable | grep -viE '^(torch|torchvision|torchaudio|torchcodec)=='; } > constraints-cpu.txt

constraints-cuda: ## write constraints-cuda.txt from what pip would install on a machine with an NVIDIA GPU
	@$(BIN)/python scripts/resolve_cuda.py

alerts: ## write the alerts of deploy/prometheus/rules.yml for the Prometheus operator, into deploy/kubernetes
	@$(BIN)/python -m scripts.manifests.monitoring

manifests: ## render deploy/kubernetes and check it; SCHEMAS=DIR has published schemas, of KubeRay and the Prometheus operator
	@$(BIN)/python -m scripts.manifests $(addprefix --schemas ,$(SCHEMAS))

# In an environment of its own: what audits the dependencies should not change them.
audit: ## look the pinned dependencies up among advisories: docs/dependency-audit.md; ADVISORIES=all.zip needs no network
	@test -n "$(ADVISORIES)" || test -x $(VENV)-audit/bin/pip-audit || { $(PYTHON) -m venv $(VENV)-audit && $(VENV)-audit/bin/pip install -q pip-audit; }
	@$(BIN)/python -m scripts.audit $(if $(ADVISORIES),--advisories $(ADVISORIES),--pip-audit $(VENV)-audit/bin/pip-audit)

clean: ## remove the virtual environment and caches, keep runs/
	rm -rf $(VENV) $(VENV)-audit .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
