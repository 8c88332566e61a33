# make demo: from nothing to a verified package. make test: the tests. Both set up .venv when it is missing or stale.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: setup demo test test-slow check format bench bench-train bench-data bench-sync bench-distill bench-kd bench-tune bench-trackers clean

setup: $(STAMP)

# The stamp is written last, so an interrupted set-up is done again.
$(STAMP): requirements.txt requirements-dev.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON); install Python 3.11 or newer, or: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $$($(PYTHON) --version) is too old; Python 3.11 or newer is needed: make PYTHON=python3.11" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	@touch $@

demo: $(STAMP)
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/demo.sh

test: $(STAMP)
	$(BIN)/python -m pytest

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vulture

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)
	$(BIN)/nexa prepare --config configs/data.yaml
	$(BIN)/python benchmarks/loop_overhead.py

# The peers have an environment of their own; nothing of it is a dependency.
PEERS := benchmarks/.peers
bench-train: $(STAMP)
	@test -f "$(DATA)" || { echo "error: which rows? make bench-train DATA=gsm8k_train.jsonl (JSON lines with question and answer)" >&2; exit 2; }
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet torch==2.13.0
	$(PEERS)/bin/python -m pip install --quiet -r benchmarks/training/requirements.txt
	$(BIN)/python benchmarks/training/compare.py --data "$(DATA)" --peers $(PEERS)/bin/python

# A million rows made of the given texts, 1 GB, dirty and clean; then near duplicates.
PEERS_DATA := benchmarks/.peers-data
ROWS := benchmarks/.rows
bench-data: $(STAMP)
	@test -n "$(DATA)" || { echo "error: which texts? make bench-data DATA='gsm8k_train.jsonl ag_news.csv' (JSON lines or CSV)" >&2; exit 2; }
	test -x $(PEERS_DATA)/bin/python || $(PYTHON) -m venv $(PEERS_DATA)
	$(PEERS_DATA)/bin/python -m pip install --quiet -r benchmarks/data/requirements.txt
	mkdir -p $(ROWS)
	test -f $(ROWS)/dirty.jsonl || $(BIN)/python benchmarks/data/make_rows.py --texts $(DATA) --out $(ROWS)/dirty.jsonl
	test -f $(ROWS)/clean.jsonl || $(BIN)/python benchmarks/data/make_rows.py --texts $(DATA) --out $(ROWS)/clean.jsonl --clean
	$(BIN)/python benchmarks/data/compare.py --rows $(ROWS)/dirty.jsonl --clean $(ROWS)/clean.jsonl --peers $(PEERS_DATA)/bin/python
	$(BIN)/python benchmarks/data/near_duplicates.py --data $(DATA) --peers $(PEERS_DATA)/bin/python

# The storage's data lies in memory where it can: a disk would be what is measured.
PEERS_SYNC := benchmarks/.peers-sync
bench-sync: $(STAMP)
	test -x $(PEERS_SYNC)/bin/python || $(PYTHON) -m venv $(PEERS_SYNC)
	$(PEERS_SYNC)/bin/python -m pip install --quiet -r benchmarks/sync/requirements.txt
	$(BIN)/python -m benchmarks.sync.compare --peers $(PEERS_SYNC)/bin $(if $(wildcard /dev/shm),--folder /dev/shm)

# Curator and distilabel have an environment of their own; the others run where NexaCompute does.
PEERS_DISTILL := benchmarks/.peers-distill
bench-distill: $(STAMP)
	test -x $(PEERS_DISTILL)/bin/python || $(PYTHON) -m venv $(PEERS_DISTILL)
	$(PEERS_DISTILL)/bin/python -m pip install --quiet -r benchmarks/distill/requirements.txt
	$(BIN)/python -m benchmarks.distill.compare --peers $(PEERS_DISTILL)/bin/python

PEERS_KD := benchmarks/.peers-kd
bench-kd: $(STAMP)
	test -x $(PEERS_KD)/bin/python || $(PYTHON) -m venv $(PEERS_KD)
	$(PEERS_KD)/bin/python -m pip install --quiet torch==2.13.0
	$(PEERS_KD)/bin/python -m pip install --quiet -r benchmarks/distill/requirements_kd.txt
	$(BIN)/python -m benchmarks.distill.kd --peers $(PEERS_KD)/bin/python

# A study beside bare Optuna; then, for an hour or two, studies by `tpe` and by `random`.
bench-tune: $(STAMP)
	$(BIN)/python -m benchmarks.tune.overhead
	$(BIN)/python -m benchmarks.tune.quality run digits
	$(BIN)/python -m benchmarks.tune.quality run python_docs
	$(BIN)/python -m benchmarks.tune.quality show

bench-trackers: $(STAMP)
	$(BIN)/python -m benchmarks.trackers.compare

clean:
	rm -rf .venv $(PEERS) $(PEERS_DATA) $(PEERS_SYNC) $(PEERS_DISTILL) $(PEERS_KD) $(ROWS) benchmarks/.tune .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
