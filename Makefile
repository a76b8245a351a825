# `make demo` runs the main job, `make test` passes the tests; both set up what they need.
# Needed beforehand: a Rust toolchain, Python 3 with venv and pip (for libtorch's wheel), a C++ compiler and binutils.

TORCH   := 2.11.0
PYTHON  ?= python3
VENV    := .libtorch
MARK    := $(VENV)/torch-$(TORCH).installed
NEXTEST := $(shell command -v cargo-nextest 2>/dev/null)
ATTRFLOW := target/release/attrflow
# What can be silent for minutes says that it still runs. On a terminal, cargo and attrflow show progress themselves.
STILL   := sh packaging/still-running.sh
BUSY     = $(if $(shell test -t 2 && echo terminal),,$(STILL) "$(1)")
DEVICE  ?= cpu

.PHONY: setup build demo proof compare test moto test-python test-browser wheel test-wheel test-wheel-ci test-slurm faults-slurm bench-cluster check bench gpu-pack bench-runners bench-planner golden check-python check-readers clean

## setup: put libtorch inside this folder (an exported LIBTORCH is used instead)
setup: $(if $(LIBTORCH),,$(MARK))

$(MARK):
	@echo "libtorch $(TORCH): its packages are 2.7 GB to fetch and 4.6 GB on disk, in $(VENV)"
	$(PYTHON) -m venv $(VENV)
	$(STILL) "fetching and installing libtorch" $(VENV)/bin/python -m pip install --disable-pip-version-check torch==$(TORCH)
	ln -sfn "$$(cd $(VENV) && ls -d lib/python3*/site-packages/torch)" $(VENV)/torch
	touch $@

## build: the program, optimised
build: setup
	$(call BUSY,building) cargo build --release --locked

## demo: the whole pipeline on the data of data/demo
demo: setup
	@echo "building attrflow: about ten minutes on two cores the first time"
	@# Where there is no program yet, without S3, which takes less; `make build` adds it.
	$(call BUSY,building) cargo build --release --locked $$(test -e $(ATTRFLOW) || echo --no-default-features)
	$(call BUSY,running the demo) $(ATTRFLOW) run pipelines/demo.toml --report

## proof: tests of the demo's attributions, with verdicts in results/proof/evaluate/summary.json
proof: build
	$(ATTRFLOW) run pipelines/proof.toml

## compare: other methods beside unlearning, by all tests of the demo: one table with intervals and costs, in the report too
compare: build
	$(ATTRFLOW) run pipelines/compare.toml --report
	@cat results/compare/compared/methods.csv

## test: all tests
test: setup
ifeq ($(NEXTEST),)
	cargo test --locked --workspace
else
	# One more at once than there are cores: those of Slurm wait most of their time.
	cargo nextest run --locked --workspace --test-threads $$(($$(nproc) + 1))
	cargo test --doc --locked
endif

## test-python: the Python module: its types, its tests and the examples of docs/files.md
test-python: $(VENV)/python/installed
	$(VENV)/python/bin/python -m mypy python/attrflow tests/python tests/wheel packaging
	ATTRFLOW_TEST_PROGRAM="$$(ls -t target/debug/attrflow target/release/attrflow 2>/dev/null | head -n 1)" $(VENV)/python/bin/python -m pytest -q

## test-browser: the pages of `attrflow report` in Chromium without a window; screenshots in target/browser/screenshots
test-browser: setup $(VENV)/browser/installed
	rm -rf target/browser
ifeq ($(NEXTEST),)
	ATTRFLOW_WRITE_TO=$(CURDIR)/target/browser cargo test --locked --workspace pages_for_a_browser -- --ignored
else
	ATTRFLOW_WRITE_TO=$(CURDIR)/target/browser cargo nextest run --locked --workspace --run-ignored only pages_for_a_browser
endif
	$(VENV)/browser/bin/python -m mypy tests/browser
	ATTRFLOW_PAGES=target/browser $(VENV)/browser/bin/python -m pytest -q -rsP tests/browser

# Of axe-core's package only a file is used: what it depends on is large.
$(VENV)/browser/installed: tests/browser/requirements.txt tests/browser/axe.txt
	$(PYTHON) -m venv $(VENV)/browser
	$(VENV)/browser/bin/python -m pip install --quiet --disable-pip-version-check -r tests/browser/requirements.txt
	$(VENV)/browser/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r tests/browser/axe.txt
	touch $@

$(VENV)/python/installed: tests/python/requirements.txt
	$(PYTHON) -m venv $(VENV)/python
	$(VENV)/python/bin/python -m pip install --quiet --disable-pip-version-check -r tests/python/requirements.txt
	touch $@

## wheel: the optimised programs as a wheel in target/wheels, for this machine's glibc and newer ones (or PLATFORM=TAG)
wheel: build $(VENV)/wheel/installed
	$(VENV)/wheel/bin/python packaging/wheel.py target/release target/wheels $(if $(PLATFORM),--platform $(PLATFORM))

## test-wheel: that wheel in an environment of its own, with torch from the registry (5 GB): doctor, self-check and the whole demo
test-wheel: wheel demo
	$(VENV)/wheel/bin/python tests/wheel/check.py target/wheels/attrflow-*.whl --demo results/demo

## test-wheel-ci: a wheel of the programs that the tests built, beside the torch of `make setup`: doctor and self-check
test-wheel-ci: setup $(VENV)/wheel/installed
	$(VENV)/wheel/bin/python packaging/wheel.py target/debug target/wheels-ci
	$(VENV)/wheel/bin/python tests/wheel/check.py target/wheels-ci/attrflow-*.whl --torch $(or $(LIBTORCH),$(VENV)/torch)

$(VENV)/wheel/installed: packaging/requirements.txt
	$(PYTHON) -m venv $(VENV)/wheel
	$(VENV)/wheel/bin/python -m pip install --quiet --disable-pip-version-check -r packaging/requirements.txt
	touch $@

## test-slurm: all trials on a Slurm of this machine's own, also those that wait for its time limits (about 12 minutes; takes root)
test-slurm: setup
	bash tests/slurm/lab.sh install
ifeq ($(NEXTEST),)
	CI=true cargo test --locked --test slurm -- --include-ignored --test-threads=1
else
	CI=true cargo nextest run --locked --test slurm --run-ignored all
endif

## faults-slurm: 200 random faults over as many runs on it as they take (about an hour; FAULTS=N for fewer)
faults-slurm: build
	bash tests/slurm/lab.sh install
	$(PYTHON) tests/slurm/faults.py --attrflow $(ATTRFLOW) --faults $(or $(FAULTS),200)

## bench-cluster: units a second, overhead against this machine's own workers, questions to the scheduler
bench-cluster: build
	bash tests/slurm/lab.sh install
	$(PYTHON) benches/cluster/cluster.py --attrflow $(ATTRFLOW)

## moto: a second maker's S3 server, for the tests of push and pull
moto: $(VENV)/moto/installed

$(VENV)/moto/installed: tests/s3/requirements.txt | setup
	$(PYTHON) -m venv $(VENV)/moto
	$(VENV)/moto/bin/python -m pip install --quiet --disable-pip-version-check -r tests/s3/requirements.txt
	touch $@

## check: what must be clean before a change lands
check: setup
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	$(MAKE) test
	@command -v cargo-deny >/dev/null || { echo "cargo-deny is missing: cargo install --locked cargo-deny"; exit 1; }
	cargo deny --log-level error check bans licenses sources

## bench: the passes beside a peer on diffusers, cost as work grows, self-influence; on two cores about 25 minutes
bench: build $(VENV)/golden/installed
	cargo build --release --locked --package attrflow-speed
	$(VENV)/golden/bin/python benches/speed/speed.py --binary target/release/attrflow-speed --device $(DEVICE) --out target/speed.json
	$(VENV)/golden/bin/python benches/speed/growth.py --binary target/release/attrflow-speed --out target/growth.json
	cargo bench --locked

## gpu-pack: what is measured on a GPU, for a machine without Rust: target/gpu-pack.tar.gz; there, sh on_gpu.sh
gpu-pack: build
	cargo build --release --locked --package attrflow-speed
	rm -rf target/gpu-pack && mkdir -p target/gpu-pack/bin target/gpu-pack/wheels target/gpu-pack/benches
	for name in attrflow attrflow-worker attrflow-speed; do strip -o target/gpu-pack/bin/$$name target/release/$$name || exit 1; done
	cp -r benches/speed target/gpu-pack/benches/ && cp -r pipelines configs data target/gpu-pack/ && cp benches/speed/on_gpu.sh target/gpu-pack/
	$(VENV)/bin/python -m pip download --quiet --no-deps --dest target/gpu-pack/wheels diffusers==0.42.1 importlib_metadata==10.2.0
	tar -czf target/gpu-pack.tar.gz -C target gpu-pack && ls -lh target/gpu-pack.tar.gz

## bench-runners: Ninja, Snakemake, DVC and b3sum beside ours, and the ratios (about 20 minutes; RUNNERS=--full takes an hour, --large half of one, --calls a minute)
bench-runners: build
	test -x $(VENV)/runners/bin/ninja || { $(PYTHON) -m venv $(VENV)/runners && $(VENV)/runners/bin/python -m pip install --quiet -r benches/runners/requirements.txt; }
	PATH="$(CURDIR)/$(VENV)/runners/bin:$$PATH" $(PYTHON) benches/runners/runners.py --attrflow $(ATTRFLOW) $(RUNNERS)

## bench-planner: what `plan --measure` predicts of the demo beside what it takes; fails where it is off by more than a quarter (about 7 minutes, on an idle machine)
bench-planner: build
	$(PYTHON) benches/planner/planner.py --attrflow $(ATTRFLOW) $(if $(PLANNER),-- $(PLANNER))

## golden: make the golden files of the tests again with the Python originals
golden: $(VENV)/golden/installed
	for script in tests/golden/make_*.py; do $(VENV)/golden/bin/python $$script || exit 1; done

$(VENV)/golden/installed: tests/golden/requirements.txt | setup
	$(PYTHON) -m venv $(VENV)/golden
	$(VENV)/golden/bin/python -m pip install --quiet -r tests/golden/requirements.txt
	touch $@

## check-python: what the program writes, read by torch, numpy, pickle and diffusers (after `make golden`'s set-up)
check-python: demo $(VENV)/golden/installed
	rm -rf target/exports target/written
	$(ATTRFLOW) export --published target/exports --unet target/exports pipelines/demo.toml
	$(VENV)/golden/bin/python tests/golden/check_exports.py target/exports results/demo
	mkdir -p target/written
	ATTRFLOW_WRITE_TO=$(CURDIR)/target/written cargo test --locked --test numerics files_for_python -- --ignored
	$(VENV)/golden/bin/python tests/golden/check_written.py target/written

## check-readers: what the program says of a run, read by in-toto, ro-crate-py, runcrate, rocrate-validator and minisign
check-readers: demo
	test -x $(VENV)/readers/bin/python || { $(PYTHON) -m venv $(VENV)/readers && $(VENV)/readers/bin/python -m pip install --quiet -r tests/readers/requirements.txt; }
	$(VENV)/readers/bin/python tests/readers/check.py $(ATTRFLOW) "$$(ls cache/runs/demo/*.json | tail -n 1)"

clean:
	cargo clean
	rm -rf cache results
