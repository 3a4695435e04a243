# `make book` builds the book, `make test` runs the tests; both set up what they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# for build requirements, older pip uses the first, newer pip the second
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
# the environment may belong to root, as in a container
export PIP_ROOT_USER_ACTION := ignore

# LOCKED=1 installs only files whose hashes are in locks/; LOCKED=cpu does so with PyTorch's build for CPUs
LOCKED ?=
HASHED := --requirement locks/packages.txt --requirement locks/torch$(if $(filter cpu,$(LOCKED)),-cpu).txt
UNPINNED := env -u PIP_CONSTRAINT -u PIP_BUILD_CONSTRAINT

.PHONY: help book pdf links test test-fast coverage lint bench audit release clean
help:
	@echo "make book   build the book into _build/html"
	@echo "make pdf    print the book into one PDF, with Chromium"
	@echo "make links  check the links of the book to other sites"
	@echo "make test   build the book where it has changed, and run all tests"
	@echo "make test-fast  run the tests that take seconds and need no built book"
	@echo "make coverage  run all tests, and list the lines of isa that none of them reaches"
	@echo "make lint   check style, spelling, types, and that notebooks have no outputs"
	@echo "make bench  measure speed, as ratios within one run, into runs/speed.csv"
	@echo "make audit  query known vulnerabilities of the pinned versions with pip-audit"
	@echo "make release  run the checks before a release: other machines, reproducibility, licences"
	@echo "make clean  remove the built book (make clean-all: the environment too)"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c '' >/dev/null 2>&1 || { echo "make: '$(PYTHON)' was not found or does not start; install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $$($(PYTHON) --version) is too old; Python 3.11 or newer is needed, name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "make: this Python cannot create environments; install its venv package (Debian: python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
ifneq ($(LOCKED),)
	$(UNPINNED) $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: $(HASHED)
endif
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(LOCKED),--no-build-isolation --no-deps) --editable '.[book,test]'
	@touch $(READY)

# after a warning, the next build reads all pages again, so that it repeats the warning
book: $(READY)
	@$(BIN)/jupyter-book build . --warningiserror --nitpick --keep-going --quiet || { rm -rf _build/.doctrees; exit 1; }
	@echo "The book is built. Open _build/html/index.html in a browser."

pdf: $(READY)
	@$(BIN)/python book/_ext/pdf.py --check
	@$(MAKE) --no-print-directory book
	@$(BIN)/python book/_ext/pdf.py

links: $(READY)
	@$(BIN)/jupyter-book build . --builder linkcheck --quiet

test: $(READY)
	@$(BIN)/python -m pytest

test-fast: $(READY)
	@$(BIN)/python -m pytest -m "not slow and not book"

coverage: $(READY)
	@$(BIN)/python -m coverage run -m pytest && $(BIN)/python -m coverage combine --quiet
	@$(BIN)/python -m coverage report --show-missing --skip-covered --fail-under=95

lint: $(READY)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@git ls-files -z | xargs -0 $(BIN)/codespell
	@git ls-files -z '*.ipynb' | xargs -0 $(BIN)/nbstripout --verify --keep-id
	@$(BIN)/mypy

bench: $(READY)
	@$(BIN)/python benchmarks/all.py

# in a separate environment, since pip-audit is not in the pinned set
audit:
	@$(PYTHON) -m venv _build/audit && $(UNPINNED) _build/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	@$(UNPINNED) _build/audit/bin/pip-audit --strict --disable-pip --require-hashes --requirement locks/packages.txt --requirement locks/torch.txt

release: $(READY)
	@$(BIN)/python benchmarks/release.py

.PHONY: clean-all
clean:
	rm -rf _build
clean-all: clean
	rm -rf $(VENV) *.egg-info
