# Everything a developer or an operator does here. `make run` and `make test` each work as the first and only
# command on a fresh Debian or Ubuntu.
SUDO := $(shell [ "$$(id -u)" -eq 0 ] || echo sudo)
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup setup-test setup-scoreboard run demo test unit live lint format bench faults scoreboard fuzz lock clean

help:  ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup:
	@packaging/setup.sh

setup-test:
	@packaging/setup.sh --test

run: setup  ## set up this host and run the appliance in the foreground
	$(SUDO) $(BIN)/kwsiem run

demo: setup-test  ## run the appliance, attack it with real nmap and hydra, show the alerts, stop
	$(SUDO) packaging/demo.sh

test: setup-test lint  ## set up this host and run all tests (root: real kernel, real peers)
	$(SUDO) packaging/run-tests.sh $(TESTS)

unit:  ## the unit tests alone
	$(BIN)/python -m pytest tests/unit

live:  ## the live tests alone
	$(SUDO) $(BIN)/python -m pytest tests/live

lint:  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format:  ## let ruff write the layout
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup-scoreboard  ## the benchmarks; figures, never pass or fail
	taskset -c 0 $(BIN)/python bench/engine.py
	taskset -c 0 $(BIN)/python bench/distinct.py
	taskset -c 0 $(BIN)/python bench/flood.py
	$(BIN)/python bench/sec.py
	$(SUDO) $(BIN)/python bench/outbox.py
	$(SUDO) $(BIN)/python bench/syslog.py
	$(SUDO) $(BIN)/python bench/delivery.py
	$(SUDO) $(BIN)/python bench/live.py
	$(SUDO) $(BIN)/python bench/firewall.py
	$(SUDO) $(BIN)/python bench/blocking.py
	$(BIN)/python bench/report.py
	$(SUDO) $(BIN)/python bench/dashboard.py
	$(SUDO) $(BIN)/python bench/net.py idle
	$(SUDO) $(BIN)/python bench/net.py overhead
	$(SUDO) $(BIN)/python bench/net.py latency
	$(SUDO) $(BIN)/python bench/net.py flood

faults: setup-test  ## 1,000,000 alerts through every fault; writes docs/delivery.md
	$(SUDO) $(BIN)/python tests/faults --write docs/delivery.md

setup-scoreboard:
	@packaging/setup.sh --scoreboard

scoreboard: setup-scoreboard  ## real attacks and real daily work against the live appliance; writes docs/detection.md
	$(SUDO) $(BIN)/python tests/scoreboard --write docs/detection.md

fuzz:  ## random streams: the engine against a second evaluator; forged sources against the guard
	$(BIN)/python tests/fuzz.py --streams 100000
	$(BIN)/python tests/forged.py --streams 1000000

lock:  ## pin the dependencies anew (needs uv)
	uv pip compile --universal --python-version 3.10 --generate-hashes --no-annotate --quiet \
	    --custom-compile-command "make lock" \
	    pyproject.toml packaging/build.in -o packaging/requirements.lock
	uv pip compile --universal --python-version 3.10 --generate-hashes --no-annotate --quiet --extra test \
	    --custom-compile-command "make lock" \
	    pyproject.toml packaging/build.in -o packaging/requirements-test.lock

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
