# One command for each job; `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help setup compiled serve lint test bench campaign lock system

PORT ?= 8000
# Two more than there are cores: tests also wait, for deadlines and for drains.
JOBS ?= $(shell echo $$(($$(nproc) + 2)))
PACKAGES := chromium curl docker-compose docker.io g++ haproxy iproute2 mmdebstrap prometheus wrk
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2> /dev/null && echo $$python && break; done)
UV = $(shell command -v uv || echo .venv/bin/uv)
READY := .venv/.ready
# Tests may write inside the checkout only: their temporary files and every library's cache go here.
# Tests run side by side, so a thread that waits must not spin, and training has one thread (a service sets its own
# number); of the slow ones the longest come first, as they lie.
TEST_ENV := env --unset=PYTHONDONTWRITEBYTECODE OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 TMPDIR=$(CURDIR)/.venv/tmp XDG_CACHE_HOME=$(CURDIR)/.venv/cache MPLCONFIGDIR=$(CURDIR)/.venv/cache/matplotlib
# One lock for Python 3.11 to 3.13 on every platform (fewest: one version of each package); the index is the user's.
COMPILE = .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --all-extras \
	--generate-hashes --no-annotate --no-emit-index-url --custom-compile-command 'make lock' $(LOCK_FLAGS)

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

setup: compiled  ## make .venv with all that the other targets need (TORCH_INDEX=URL takes torch from there: CPU-only)

# uv is the one on PATH or, failing that, the locked one. The base lock has all but torch and what it brings. Compiled here
# once (20 s): where Python may not write bytecode, each process would compile torch anew, which doubles its start.
$(READY): requirements.lock requirements-base.lock
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 found; name one with PYTHON=." >&2; exit 1; }
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	test -x "$(UV)" || { sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > .venv/uv.txt && \
		.venv/bin/python -m pip install --quiet --require-hashes -r .venv/uv.txt; }
ifdef TORCH_INDEX
	$(UV) pip install --compile-bytecode --python .venv/bin/python --require-hashes -r requirements-base.lock
	$(UV) pip install --compile-bytecode --python .venv/bin/python --index "$(TORCH_INDEX)" $$(grep -oE '^torch(vision)?==[^ ]+' requirements.lock)
else
	$(UV) pip install --compile-bytecode --python .venv/bin/python --require-hashes -r requirements.lock
endif
	@mkdir -p .venv/tmp .venv/cache && touch $@

compiled: $(READY)  ## compile what every request passes, 40 s; setup, serve, test and bench do (no C compiler: serves slower)
	@.venv/bin/python -m service.compile || true

ifeq ($(shell uname -s),Darwin)
serve:
	@echo "Serving is for Linux. On macOS it runs in the container: docker compose up" >&2; exit 1
else
serve: compiled artifacts/model.pt  ## train the demo model unless artifacts/model.pt exists, and serve it on PORT (8000)
	exec .venv/bin/python -m service --model artifacts/model.pt --port $(PORT)
endif

artifacts/model.pt: | $(READY)
	.venv/bin/python -m training --data shapes10 --recipe demo --out $@

# mypy's cache is its own: compiling, beside which this runs, has one too.
lint: $(READY)  ## style and types
	.venv/bin/ruff format --check
	.venv/bin/ruff check
	MYPY_CACHE_DIR=.venv/cache/mypy .venv/bin/mypy

test: $(READY)  ## lint, types and every test (STRICT=1: nothing but "no GPU" may skip; TEST_DATA=DIR: the real data)
	@$(MAKE) --jobs 2 compiled lint
	$(TEST_ENV) .venv/bin/pytest -n $(JOBS) --dist loadfile -m "not slow"
	$(TEST_ENV) .venv/bin/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m slow

# accuracy needs the real data; the GPU has a suite of its own: python -m benchmarks gpu.
bench: compiled  ## measure the service, 45 minutes, to benchmarks/results (PEERS=1: mosec too, a download; TEST_DATA=DIR: photos)
	for suite in "compare $(if $(PEERS),--peers)" "pairs $(if $(PEERS),--peers)" stages batches growth $(if $(TEST_DATA),accuracy); do \
		.venv/bin/python -m benchmarks $$suite || exit; done

campaign: compiled  ## break the service for real under load, 27 minutes, to benchmarks/results (ONLY="F1 kills": these alone)
	.venv/bin/python -m benchmarks faults $(if $(ONLY),--only $(ONLY))
	$(if $(ONLY),,.venv/bin/python -m benchmarks soak)

lock: $(READY)  ## write both lock files anew from pyproject.toml (LOCK_FLAGS=--upgrade takes newer releases)
	$(COMPILE) --output-file requirements.lock pyproject.toml
	printf 'torch\ntorchvision\n' | $(COMPILE) --excludes - --constraints requirements.lock \
		--output-file requirements-base.lock pyproject.toml

system:  ## install the Debian packages that tests and benchmarks use (as root)
	dpkg --status $(PACKAGES) > /dev/null 2>&1 || { \
		apt-get update -q && apt-get install -q -y --no-install-recommends $(PACKAGES); }
