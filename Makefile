# Everything a developer types. Each target does its own set-up; nothing needs root.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup dev test matrix chaos bench bench-check check format clean

setup: $(STAMP)

$(STAMP): pyproject.toml setup.py constraints.txt $(wildcard */*.pyx */*.pxd */*/*.pyx */*/*.pxd)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing maskline and its tools into $(VENV) (a minute or two the first time)"
	@PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
		$(BIN)/python -m pip install --disable-pip-version-check --quiet -e '.[dev]'
	@$(BIN)/python -c 'import maskline.worker.native.entries, maskline.worker.native.order, maskline.worker.native.wire' 2>/dev/null \
		|| echo "no C compiler was found: what is in C is done in Python, which is slower"
	@touch $(STAMP)

dev: $(STAMP)
	@$(BIN)/maskline dev --demo

test: $(STAMP)
	@$(BIN)/python -m pytest -n 4 --dist worksteal

# The tests that talk to a server, on Valkey 9.1, Redis 8.2 and Redis 7.0.
matrix: $(STAMP)
	@$(BIN)/python tests/matrix.py

# Traffic while processes are killed, stopped and cut off. DURATION_S=60 SEED=7 make chaos
chaos: $(STAMP)
	@$(BIN)/python tests/chaos/run.py

# Beside what one would otherwise write or take; see bench/README.md. ONLY=ingest ROUNDS=6 make bench
bench: $(STAMP)
	@$(BIN)/python -m bench

# Has something become slow? Generous bounds, under two minutes.
bench-check: $(STAMP)
	@$(BIN)/python -m bench.check

check: $(STAMP)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/deptry .

format: $(STAMP)
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .bench .maskline .matrix build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -f */*/*.so schemas/fastdecode/*.c worker/native/*.c
