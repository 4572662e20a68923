# convoy: the commands that people type. `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= python3
LOCK := $(if $(GPU),requirements-gpu.lock,$(if $(BENCHMARKS),requirements-benchmarks.lock,requirements.lock))
READY := .venv/.ready-$(LOCK)
PORT ?= 5000
JOBS ?= 3
PREFECT_PORT ?= 4200
SERVE_PORT ?= 5001
DATASET ?= digits

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := 1
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.PHONY: help
help:  ## list the commands
	@grep -hE '^[a-z -]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-8s %s\n", $$1, $$2}'

.PHONY: setup
setup: moved $(READY) .venv/bin/convoy  ## install the locked dependencies and the command convoy into .venv (GPU=1: with CUDA; BENCHMARKS=1: with what they compare to)

# The lock is complete, so pip only fetches and checks hashes (--no-deps); it compiles the bytecode on the way.
$(READY): $(LOCK)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "convoy needs Python 3.11 to 3.13; $(PYTHON) is $$($(PYTHON) -V). Choose one: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $(LOCK)
	@rm -f .venv/.ready-*; touch $@

# The command, which runs the code of the checkout in whose root it is typed, with the Python beside it.
define CONVOY
#!/bin/sh
if [ ! -f flows/__main__.py ]; then
    root=$$PWD
    while [ -n "$$root" ] && [ ! -f "$$root/flows/__main__.py" ]; do root=$${root%/*}; done
    echo "error: convoy runs at the root of a checkout, and $$PWD is none.$${root:+ cd $$root}" >&2
    exit 2
fi
exec "$$(dirname "$$(readlink -f "$$0")")/python" -m flows "$$@"
endef
export CONVOY

.venv/bin/convoy: $(READY) Makefile
	@printf '%s\n' "$$CONVOY" > $@.new; chmod +x $@.new; mv $@.new $@

# The programs in .venv name the folder that they were installed in; a checkout that is moved takes them along.
define RENAME
import pathlib, sys
was, now = (word.encode() for word in sys.argv[1:])
for file in [*pathlib.Path(".venv/bin").iterdir(), pathlib.Path(".venv/pyvenv.cfg")]:
    if file.is_file() and not file.is_symlink() and was in (text := file.read_bytes()) and b"\0" not in text:
        file.write_bytes(text.replace(was, now))
endef
export RENAME

.PHONY: moved
moved:
	@was=$$(sed -n 's/^command = .* -m venv //p' .venv/pyvenv.cfg 2>/dev/null); \
	if [ -n "$$was" ] && [ "$$was" != "$(CURDIR)/.venv" ] && [ ! -L .venv ]; then \
		$(PYTHON) -c "$$RENAME" "$$was" "$(CURDIR)/.venv"; \
		echo "this checkout was moved or copied: the programs in .venv are those of $(CURDIR) now"; \
	fi

.PHONY: repro
repro: setup  ## raw data -> registered models: whatever is not up to date (dvc repro)
	@since=$$(date +%s); convoy check && dvc repro && convoy show --since $$since

.PHONY: doctor
doctor: setup  ## check this machine: libraries, clock, disk, permissions, servers, GPU
	@convoy doctor

.PHONY: push pull verify
push pull: setup  ## data and models to the remote, or from it: only what is whole
	@convoy $@

verify: setup  ## read all data, DVC's cache and the remote, and name what is damaged
	@convoy verify

.PHONY: pipeline plan
pipeline: setup  ## the same in parallel, a device for each training (convoy run --help)
	@convoy run

plan: setup  ## what would run, why, and how long it took last time
	@convoy plan

.PHONY: ui
ui: setup  ## browse runs, models, the registry (PORT=5000) and flows (PREFECT_PORT=4200)
	@convoy ui --port $(PORT) --prefect-port $(PREFECT_PORT)

.PHONY: serve
serve: setup  ## the champion of DATASET=digits over HTTP (SERVE_PORT=5001): raw pictures, sentences, volumes
	@convoy serve $(DATASET) --port $(SERVE_PORT)

.PHONY: test test-fast
test-fast: setup  ## run the tests that take at most a second each, in process
	@python -m pytest -n $(JOBS) --dist loadfile -m "not alone and not slow"

test: setup  ## run the tests, some at the same time (JOBS=3)
	@python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not alone"
	@python -m pytest -m alone

.PHONY: lint
lint: setup  ## check style, types, directions of imports and words
	@ruff check . && ruff format --check . && lint-imports && mypy && python .ci/words.py

.PHONY: lock
lock: setup  ## renew the lock files from pyproject.toml
	@uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--no-emit-index-url --extra dev pyproject.toml -o requirements.lock
	@uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--no-emit-index-url --extra dev --extra gpu -c requirements.lock pyproject.toml -o requirements-gpu.lock
	@uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--no-emit-index-url --extra dev --extra benchmarks -c requirements.lock pyproject.toml -o requirements-benchmarks.lock
