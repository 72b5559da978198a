# `make demo` shows everything, `make check` is for while you work, `make test` is what CI runs;
# `make docs` builds the site. All use the environment .venv.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: demo check test lint docs names clean

demo: $(INSTALLED)
	$(BIN)/codeseg demo

# Two workers, each with one thread for arithmetic: threads that wait for each other on the same
# cores double the time. tests/conftest.py groups the tests and puts the long ones first.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
check test: export OMP_NUM_THREADS = 1
check: lint
	$(PYTEST) -q -m "not slow"

test: lint
	$(PYTEST)

# What only a GPU can show; on a machine without one every test is skipped.
test-gpu:
	$(BIN)/python -m pytest -m gpu

# Type checkers and the site's API pages do not follow an editable installation: links with its names.
NAMES := build/names/codeseg
names:
	@mkdir -p $(NAMES)
	@for room in model pipeline stages data_manifests; do ln -sfn ../../../$$room $(NAMES)/$$room; done
	@for file in __init__ __main__; do ln -sf ../../../stages/public/$$file.py $(NAMES)/$$file.py; done

lint: $(INSTALLED) names
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Into site/; a broken link or anchor fails it. `make test` builds it, too.
docs: $(INSTALLED) names
	$(BIN)/mkdocs build --strict

# The stamp is written last, so an interrupted installation is simply done again.
$(INSTALLED): pyproject.toml constraints.txt
	@for python in python3 python3.12 python3.11 none; do \
	  if [ $$python = none ]; then echo "codeseg needs Python 3.11 or 3.12 on PATH" >&2; exit 2; fi; \
	  $$python -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && break; \
	done; \
	echo "creating $(VENV) with $$($$python --version)"; \
	$$python -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info demo-run site
