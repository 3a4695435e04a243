# `make book` builds the book, `make test` runs the tests; both set up what they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# older pip applies the first to build requirements as well, newer pip the second
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt

.PHONY: help book pdf test lint bench clean
help:
	@echo "make book   build the book into _build/html"
	@echo "make pdf    print the book into one PDF, with Chromium"
	@echo "make test   run all tests"
	@echo "make lint   run the linter"
	@echo "make bench  measure speed, each as a ratio inside one run, into runs/speed.csv"
	@echo "make clean  remove the built book (make clean-all: the environment too)"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c '' >/dev/null 2>&1 || { echo "make: '$(PYTHON)' was not found or does not start; install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $$($(PYTHON) --version) is too old; Python 3.11 or newer is needed, name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "make: this Python cannot create environments; install its venv package (Debian: python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[book,test]'
	@touch $(READY)

book: $(READY)
	@$(BIN)/jupyter-book build . --warningiserror --nitpick --keep-going --quiet
	@echo "The book is built. Open _build/html/index.html in a browser."

pdf: $(READY)
	@$(BIN)/python book/_ext/pdf.py --check
	@$(MAKE) --no-print-directory book
	@$(BIN)/python book/_ext/pdf.py

test: $(READY)
	@$(BIN)/python -m pytest

lint: $(READY)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

bench: $(READY)
	@$(BIN)/python benchmarks/all.py

.PHONY: clean-all
clean:
	rm -rf _build
clean-all: clean
	rm -rf $(VENV) *.egg-info
