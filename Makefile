# Needs Python 3.11 or 3.12 and a package index; everything else is made in .venv.
PYTHON ?= $(shell command -v python3.12 || command -v python3.11 || command -v python3)
VENV := .venv
ON := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"
scale ?= smoke

.PHONY: env figures test lock clean

env: $(VENV)/ready

# uv installs the lock file: exact versions, checked by hash. The stamp is written last.
$(VENV)/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) else "Python 3.11 or 3.12 is needed, %s is %d.%d. Set PYTHON=..." % (sys.executable, *v))'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(VENV)/bin/uv pip sync --quiet --python $(VENV)/bin/python requirements.lock
	$(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python --no-deps --editable .
	touch $@

figures: env
	$(ON) snakemake --cores all figures/ --config scale=$(scale)

test: env
	$(ON) python -m pytest

lock:
	$(ON) uv pip compile --universal --generate-hashes --extra cluster --extra dev --no-emit-index-url --no-emit-find-links --no-header -o requirements.lock pyproject.toml

clean:
	rm -rf figures/smoke results/smoke data/smoke store/smoke logs/smoke .snakemake
