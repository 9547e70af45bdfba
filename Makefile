# Two commands on a fresh machine (Python >= 3.11, a C++ compiler, make): `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SOURCES := pyproject.toml CMakeLists.txt $(shell find csrc src -name '*.[chp]pp' -o -name '*.inc' -o -name '*.py*' | grep -v -e '\.so$$' -e __pycache__)

.PHONY: help demo test test-scalar lint bench clean

help:
	@echo "make demo         convert all-MiniLM-L6-v2 to int8 and int4 and run it from the compact files"
	@echo "make test         run the tests"
	@echo "make test-scalar  run the tests on the scalar kernels"
	@echo "make lint         ruff and mypy --strict"
	@echo "make bench        speed beside NumPy and SciPy"
	@echo "make clean        remove what make made"

$(VENV)/made:
	@echo "== making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -c 'import sys; sys.exit("make: expected Python >= 3.11, got " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv $(VENV) || { echo "make: $(PYTHON) -m venv failed; on Debian: apt install python3-venv"; exit 1; }
	@touch $@

$(VENV)/built: $(VENV)/made $(SOURCES)
	@echo "== building pumice (about a minute)"
	@$(PIP) .
	@touch $@

$(VENV)/with-%: $(VENV)/built
	@echo "== installing what '$*' needs"
	@$(PIP) $$($(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['$*'])")
	@touch $@

demo: $(VENV)/with-demo
	@$(BIN)/python examples/demo.py

test: $(VENV)/with-test
	@echo "== running the tests"
	@$(BIN)/python -m pytest -q

test-scalar: $(VENV)/with-test
	@echo "== running the tests on the scalar kernels"
	@PUMICE_ISA=scalar $(BIN)/python -m pytest -q

lint: $(VENV)/with-lint
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: $(VENV)/with-scipy
	@$(BIN)/python bench/run.py

clean:
	rm -rf $(VENV) build dist
