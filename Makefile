# Needs Python 3.11 or 3.12 and a package index; everything else is made in .venv.
FITS := import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do $$p -c '$(FITS)' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
ON := PATH="$(abspath $(VENV))/bin:$$PATH"
scale ?= smoke

.PHONY: env figures test docs torture fuzz golden lock clean

env: $(VENV)/ready

# uv installs the lock file: exact versions, checked by hash; compiled, for every command imports much. The stamp is last.
$(VENV)/ready: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or 3.12 with the module venv was found. Set PYTHON=/path/to/python." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(VENV)/bin/uv pip sync --quiet --compile-bytecode --python $(VENV)/bin/python requirements.lock
	$(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python --no-deps --editable .
	@echo "The environment is in $(VENV): tested on Linux x86-64; it also resolves for Linux aarch64 and macOS arm64 (CPU)."
	@touch $@

figures: env
	$(ON) snakemake --cores all figures/ --config scale=$(scale)

# Two processes, each with whole files, so that what a file builds once is built once.
test: env
	$(ON) python -m pytest -n 2 --dist loadfile

# The pages of docs/ and the reports as a searchable site in site/.
docs: env
	$(ON) cpt-repro report --scale pocket
	$(ON) mkdocs build --strict --quiet

# The longer mode of the tests that kill: 200 kills and more, and the table of faults anew.
torture: env
	$(ON) CPT_REPRO_KILLS=200 CPT_REPRO_FAULT_TABLE=docs/faults.md python -m pytest tests/training tests/data tests/models tests/workflow tests/test_surroundings.py

# 20,000 changed files for every reader, a quarter of an hour, and the table of what became of them.
fuzz: env
	$(ON) CPT_REPRO_FUZZ=20000 CPT_REPRO_FUZZ_TABLE=docs/fuzz.md python -m pytest tests/test_fuzz.py
	@cat docs/fuzz.md

# Expected losses of three tiny runs, after a change that is meant to change numbers.
golden: env
	$(ON) CPT_REPRO_GOLDEN=write python -m pytest tests/training/test_train.py -k golden

lock:
	$(ON) uv pip compile --universal --generate-hashes --extra cluster --extra dev --no-emit-index-url --no-emit-find-links --no-header -o requirements.lock pyproject.toml

clean:
	rm -rf figures/smoke results/smoke data/smoke store/smoke logs/smoke .snakemake
