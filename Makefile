PYTHON ?= python3.11
BIN := .venv/bin
ifneq ($(wildcard ../shared/data),)
export CONSILIUM_DATA ?= $(abspath ../shared/data)
endif

.PHONY: demo test check fast soak clean

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
