# Everything a developer types. Each target does its own set-up; nothing needs root.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

PYX = $(shell find -L maskline -name '*.pyx')
# pip takes exact versions from constraints.txt, also for what it builds with.
PINNED := PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT=$(CURDIR)/constraints.txt PIP_BUILD_CONSTRAINT=$(CURDIR)/constraints.txt

.PHONY: setup dev test coverage matrix chaos bench bench-check check wheel format clean

setup: $(STAMP)

$(STAMP): pyproject.toml setup.py constraints.txt $(PYX) $(shell find -L maskline -name '*.pxd')
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing maskline and its tools into $(VENV) (a minute or two the first time)"
	@$(PINNED) $(BIN)/python -m pip install --quiet -e '.[dev]'
	@for source in $(PYX:.pyx=); do ls $$source.*.so >/dev/null 2>&1 || echo "not compiled: $$source.pyx; its work is done in Python, which is slower"; done
	@touch $(STAMP)

dev: $(STAMP)
	@$(BIN)/maskline dev --demo

# The tests' processes read hundreds of modules, and so do the hundreds of processes that they start: each would compile
# them anew where no bytecode may be kept.
test coverage matrix: export PYTHONDONTWRITEBYTECODE :=

test: $(STAMP)
	@$(BIN)/python -m pytest -n 4 --dist worksteal

# The lines that no test reaches, in tests' processes and in those that they start. A list to read, not a bound to hold.
# TESTS=tests/schemas make coverage
coverage: $(STAMP)
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest -n 4 --dist worksteal $(TESTS)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage html --quiet
	@$(BIN)/coverage report
	@echo "line by line: htmlcov/index.html"

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

# A release: dist/ with a source distribution and a wheel, and a newcomer's path with the wheel in an empty environment.
wheel: $(STAMP)
	@rm -rf dist
	@echo "building dist/ (the source distribution, and the wheel from it)"
	@$(PINNED) REQUIRE_MASKLINE_C=1 $(BIN)/python -m build --outdir dist . > .wheel.log 2>&1 || { cat .wheel.log; exit 1; }
	@$(PINNED) $(BIN)/python tests/packaging/newcomer.py dist

format: $(STAMP)
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .bench .maskline .matrix .coverage* htmlcov .wheel.log build dist *.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -f $(PYX:.pyx=.c) $(PYX:.pyx=.*.so)
