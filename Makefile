# Every target works from a fresh clone: tools/setup installs what is missing, tools/env finds it.
SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help setup build install test test-core test-spock test-faults test-setup demo demo-down demo-crash trial bench-join bench-recover bench-wan lint typecheck clean

export RUST_TEST_THREADS ?= 2

# Tests want the points at which something can go wrong, and no optimizing that takes longer than they do. The trial takes
# the same build. Any other target puts the build for use back.
test test-spock test-faults trial: FAULTS := --features faults --debug

help: ## Show the targets
	@echo "Variables: PG_CONFIG=… (the PostgreSQL to use), ARGS=… (for cargo test, demo or bench-join)"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what is missing: build tools, PostgreSQL, cargo-pgrx
	@tools/setup

build: setup ## Build the extension into target/package
	@. tools/env; rm -rf target/package; $$cargo_pgrx pgrx package --pg-config $$ZODAN_PG_CONFIG \
		--out-dir target/package $$features $(FAULTS)

install: build ## Install the extension into that PostgreSQL
	@tools/install

test: install ## Run all tests; ARGS="--test NAME" for some
	@tools/test --workspace $(ARGS)

test-core: ## Test what needs no server, in seconds
	@cargo test -p zodan-core $(ARGS)

# The suites of Spock alone, and of those for both engines the tests on Spock.
only_spock := $(patsubst tests/%.rs,--test %,$(wildcard tests/spock_*.rs))
both_engines := $(patsubst tests/%.rs,--test %,$(shell grep -l '^on_both_engines!' tests/*.rs))
test-spock: install ## Run the tests on pgEdge Spock against a PostgreSQL that has it
	@tools/test $(only_spock) $(ARGS) -- --nocapture; status=$$?; \
		tools/test $(both_engines) $(ARGS) -- --nocapture spock:: && exit $$status

test-faults: install ## Try every fault at every point of a join, a removal and a recovery, on Spock too where it is
	@ZODAN_FAULTS=all tools/test --test faults --test faults_recover --test spock_faults \
		$(ARGS) -- --nocapture

trial: install ## Let everything happen to clusters at random; SEED=N MINUTES=N, ARGS=--spock
	@. tools/env; cargo run -p lab -- trial $(ARGS)

demo: install ## Start a small cluster and add a node to it
	@. tools/env; cargo run --release -p lab -- demo $(ARGS)

demo-down: ## Stop the demo and remove it, whatever PostgreSQL it runs on
	@. tools/lib.sh; cargo run --release -p lab -- demo-down

demo-crash: install ## Let a node die, and make its survivors equal
	@. tools/env; cargo run --release -p lab -- demo-crash

bench-recover: install ## Time a recovery beside PostgreSQL's own apply worker; SCALE=N
	@. tools/env; cargo run --release -p lab -- bench-recover $(ARGS)

bench-join: install ## Time a join; SCALE=N for N times 100 MB
	@. tools/env; cargo run --release -p lab -- bench-join $(ARGS)

bench-wan: install ## Time calls between servers that are far from each other
	@. tools/env; cargo run --release -p lab -- bench-wan $(ARGS)

lint: setup ## Check the formatting, and run clippy, on core/ and lab/ too
	@cargo fmt --version >/dev/null && cargo clippy --version >/dev/null || rustup component add rustfmt clippy
	@. tools/env; cargo fmt --all --check; \
		for more in "" "--features faults"; do cargo clippy --workspace --all-targets $$features $$more -- -D warnings; done

test-setup: ## Test where set-up gets its PostgreSQL from, without a network
	@tests/setup/run

typecheck: setup ## Check that it compiles for PostgreSQL 15 to 18, core/ with it
	@tools/typecheck

clean: ## Remove what was built in this checkout
	cargo clean
