PYTHON ?= python3.11
BIN := .venv/bin
ifneq ($(wildcard ../shared/data),)
export CONSILIUM_DATA ?= $(abspath ../shared/data)
endif

.PHONY: demo test check fast soak docs audit-dependencies clean

demo: .venv/engine.stamp  ## train the phantoms before your eyes, then open the dashboard
	$(BIN)/python -m engine demo

test: check  ## everything: lint, types, all tests
	$(BIN)/python -m pytest -q

check: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fast: .venv/dev.stamp  ## the tests that need no browser and little time
	$(BIN)/python -m pytest -q -m "not slow and not browser and not realdata"

soak: .venv/dev.stamp  ## kills at 200 moments, 2,000 hostile uploads
	CONSILIUM_SOAK=1 $(BIN)/python -m pytest -q -m soak

docs: .venv/dev.stamp  ## the pages that follow from the code
	PYTHONPATH=. $(BIN)/python docs/generate.py

# In an environment of its own, thrown away with .venv. Needs pypi.org: its vulnerability service is what is asked, and a
# package that it does not know fails the audit. The SBOM lists what is installed in .venv, tools of the tests too.
audit-dependencies: .venv/dev.stamp  ## known vulnerabilities, and sbom.cdx.json
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/python -m pip install --quiet pip-audit==2.10.1 cyclonedx-bom==7.5.0
	.venv/audit/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o sbom.cdx.json $(BIN)/python
	.venv/audit/bin/pip-audit --strict --disable-pip --no-deps --requirement requirements-flower.txt
	.venv/audit/bin/pip-audit --strict --requirement requirements-engine.txt

clean:
	rm -rf .venv

.venv/python.stamp:
	$(PYTHON) -m venv .venv
	touch $@

.venv/dev.stamp: requirements-flower.txt requirements-engine.txt
.venv/%.stamp: requirements-%.txt requirements.txt .venv/python.stamp
	$(BIN)/python -m pip install --quiet --requirement $<
	$(if $(filter dev,$*),$(BIN)/python -m pip install --quiet --no-deps --requirement requirements-flower.txt)
	touch $@
