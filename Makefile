# The same commands for a person and for CI. `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help setup broker demo check test matrix faults bench foreign format lock build clean

BIN := .venv/bin
ARGS ?=
BROKER ?=

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make .venv with choreo and the pinned tools, when it is not there or out of date
	@scripts/setup.sh

broker: setup ## find a RabbitMQ server; as root on Debian, install one (it is not started)
	@scripts/broker.sh

demo: $(if $(filter rabbitmq,$(BROKER)),broker,setup) ## 20 orders through five agents, then a summary; BROKER=rabbitmq: on a real one
	@$(BIN)/python -m demo $(if $(BROKER),--broker $(BROKER)) $(ARGS)

check: setup ## format, lint, types, floors of the house
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

test: setup ## all tests; ARGS="-k retry" picks some; without RabbitMQ its tests are skipped; BROKER=embedded: on that one
	@[ "$(BROKER)" = embedded ] || scripts/broker.sh || [ "$$CI" != true ]
	CHOREO_TEST_BROKER=$(BROKER) $(BIN)/pytest $(ARGS)
	@[ -n "$(ARGS)" ] || scripts/matrix.sh --smoke

matrix: setup ## unit and rehearsal suites on every Python that choreo claims and that is here; says which are not
	@scripts/matrix.sh $(ARGS)

faults: broker ## break workers, broker and network on purpose; writes docs/reliability.md; ARGS="--faults=long" for a night
	$(BIN)/pytest tests/faults --faults=full --faults-report docs/reliability.md $(ARGS)

bench: broker ## choreo beside its peers; writes docs/performance.md; ARGS="hop --rounds 1" for a quick look, ARGS=growth
	@scripts/bench.sh
	@.venv-bench/bin/python -m tests.benchmarks $(ARGS)

foreign: broker ## other AMQP clients and workers, from pika to Celery, against the embedded broker and a real node
	@scripts/bench.sh
	$(BIN)/pytest tests/foreign $(ARGS)

format: setup ## let ruff lay out the code and mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: setup ## pin requirements/dev.txt anew
	@scripts/lock.sh

build: setup ## the wheel and the source archive, in dist/
	$(BIN)/python -m build --no-isolation

clean: ## remove .venv and everything that these commands made
	rm -rf .venv .venv-bench .venv-matrix .bench build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
