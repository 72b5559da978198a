# Two commands do everything: `make demo` and `make test`; `make docs` builds the site. All use the
# environment .venv.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: demo test lint docs names clean

demo: $(INSTALLED)
	$(BIN)/codeseg demo

# The tests that run whole commands, one after the other, go beside the rest: each uses about a core,
# and threads that wait for each other on the same two would double the time.
WHOLE := tests/docs tests/stages/test_demo.py
test: export OMP_NUM_THREADS = 1
test: $(INSTALLED) lint
	@log=$$(mktemp); $(BIN)/python -m pytest $(WHOLE) > $$log 2>&1 & whole=$$!; \
	$(BIN)/python -m pytest $(WHOLE:%=--ignore=%); rest=$$?; \
	wait $$whole; whole=$$?; cat $$log; rm -f $$log; \
	test $$rest -eq 0 && test $$whole -eq 0

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
