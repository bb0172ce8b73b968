# make install   the environment in .venv (reused when nothing changed)
# make run       that, then the quick suite:  make run ARGS="--target /scratch"
# make test      that, then the tests
# make test-all  the tests, slow variants too
# make gate      that, then every Triton kernel compiled for every GPU architecture, without one (minutes)
# make check     formatting, lint, types, layers
# make clean     remove .venv and what tools leave behind

PYTHON ?= python3
ARGS ?=
STAMP := .venv/.installed

.PHONY: install run test test-all gate check clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt tools/install.sh clustergauge/__init__.py
	PYTHON="$(PYTHON)" sh tools/install.sh
	@touch $(STAMP)

run: install
	.venv/bin/python run_suite.py $(ARGS)

test: install
	.venv/bin/python -m pytest -n 2 --dist loadfile $(ARGS)

test-all: install
	.venv/bin/python -m pytest -n 2 --dist loadfile -m "slow or not slow" $(ARGS)

gate: install
	.venv/bin/python -m kernels.gate $(ARGS)

check: install
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright
	.venv/bin/lint-imports --no-cache

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks
