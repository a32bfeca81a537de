# make demo    prune the embedded model and compare it with the original (results in results/demo)
# make test    lint, format, types, tests
# make lint    the same without the tests
# make clean   remove the environment, caches and build leftovers (results/ stays)
#
# Each makes the environment first where it is missing. Another interpreter or place:
#     make test PYTHON=python3.12 VENV=/tmp/venv312
# Tests run in two processes of one thread each; a machine with more cores can have more:
#     make test WORKERS=8

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
DEMO_OUTPUT ?= results/demo
DEMO_ARGS ?= --base_model demo --pruning_ratio 0.2 --dataset pydoc --run_evaluation ppl,tasks --eval_tasks pydoc_cloze

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
REQUIRED := import sys; sys.exit(sys.version_info < (3, 11))

.PHONY: demo test lint clean

demo: $(INSTALLED)
	GLOBAL_PRUNING_CACHE=none $(BIN)/python run_global_pruning.py $(DEMO_ARGS) --output $(DEMO_OUTPUT) --overwrite

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Installed anew only when what is to be installed changed. An environment whose pip does not start (interrupted,
# moved, its interpreter gone) is made again from nothing.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c '$(REQUIRED)' 2>/dev/null || \
		{ echo "Python 3.11 or newer is needed; '$(PYTHON)' is not. Name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
