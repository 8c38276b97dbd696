# Two commands: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Test files beside each other, one more than there are cores, since Ray's tests wait for its processes half of the time; never
# more than four, since each of them starts several.
BESIDE = $(shell $(BIN)/python -c 'import os; print(min(4, os.cpu_count() + 1))')
PYTEST = $(BIN)/python -m pytest --numprocesses $(BESIDE) --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-avx2 test-chaos test-slow check setup docs clean

demo: $(VENV)/.installed
	$(BIN)/moe-dist run jobs/demo.yaml

test: $(VENV)/.installed-dev
	$(PYTEST)
	@$(MAKE) --no-print-directory test-avx2

# Networks and methods once more, computed as by a processor with AVX2 and no AVX-512. Read when torch is loaded.
test-avx2: $(VENV)/.installed-dev
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(PYTEST) tests/models tests/methods

# Faults are caused and survived: workers, commands and disks.
test-chaos: $(VENV)/.installed-dev
	$(PYTEST) -m "chaos and not slow and not gpu"

# What takes minutes and is covered in small by the tests above: more layouts, whole recipes, the demo.
test-slow: $(VENV)/.installed-dev
	$(PYTEST) -m "slow and not gpu"

# Everything a change must pass: style, types, tests.
check: $(VENV)/.installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	@$(MAKE) --no-print-directory test test-chaos

setup: $(VENV)/.installed-dev

# The pages as a site, in site/; a link that leads nowhere fails.
docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/python -m mkdocs build --strict

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "moe_dist needs Python 3.11 or newer; run: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
