# Every command of this checkout; `make` lists them. Each one sets up .venv first, when that is needed.
#
#   PYTHON=python3.12 make test    with that Python (default: the first of 3.11 or newer on the PATH)
#   make lock ARGS=--upgrade       newest versions instead of the smallest change
#   make test ARGS="-k mixture"    further arguments for pytest

VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/dev.txt
# A stamp for each Python that was asked for by name, so that asking for another sets up again.
STAMP := $(VENV)/.ready$(if $(PYTHON),-$(notdir $(PYTHON)))
# One thread in tests: threads that spin beside a busy neighbour are many times slower.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(ARGS)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow check format bench docs notebooks wheel lock clean

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): $(LOCK) pyproject.toml tools/setup
	@PYTHON="$(PYTHON)" tools/setup $(VENV) $(LOCK)
	@touch $(VENV)/.ready $@

setup: $(STAMP)  ## make .venv with the locked versions

demo: $(STAMP)  ## train, ask and judge a council on the embedded demo data
	@$(BIN)/consilium demo

test: $(STAMP)  ## the fast tests
	$(PYTEST) -n 2 --dist worksteal -m "not slow"

test-slow: $(STAMP)  ## the long proofs
	$(PYTEST) -n 2 --dist worksteal -m slow

check: $(STAMP)  ## format, lint, strict types, import layers, public names, budgets
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(PYTEST) -q -m "not slow" tests/policy

format: $(STAMP)  ## format and mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(STAMP)  ## the side-by-side measurements, one table each
	@for script in bench/[!_]*.py; do echo "== $$script"; PYTHONPATH=. $(BIN)/python $$script $(ARGS) || exit; done

docs: $(STAMP)  ## the guides, as docs/_build/html/index.html
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

notebooks: $(STAMP)  ## notebooks/*.ipynb, each from the Markdown beside it
	$(BIN)/python tools/build_notebooks.py

wheel: $(STAMP)  ## dist/*.whl
	$(BIN)/python -m build --wheel --no-isolation

lock: $(STAMP)  ## resolve requirements/dev.txt again after a change of pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock" \
		pyproject.toml --extra train --extra wandb --extra dicom --extra cloud --extra clip --extra lora --extra onnx --extra index --extra lmdb --group dev --group docs --output-file $(LOCK) $(ARGS)

clean:  ## remove what was built; .venv, stores and runs stay
	rm -rf build dist docs/_build docs/_generated .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find bench src tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
