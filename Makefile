# Two commands do everything: `make demo` and `make test`. Each makes .venv when needed.
# PYTHON chooses the interpreter (3.11 or newer): make demo PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all lint docs figures bench-guard clean

demo: .venv/installed
	$(BIN)/medclipsam demo

test: .venv/developed
	$(BIN)/python -m pytest -n 2 -m 'not long'

test-all: .venv/developed  # before a release: all tests, 200 kills, every call that can fail
	KILLS=200 FAULTS=1 $(BIN)/python -m pytest -n 2

lint: .venv/developed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p .venv/typing/medclipsam
	for f in engine export train benchmarks; do \
	  ln -sfn ../../../$$f .venv/typing/medclipsam/$$f; done  # mypy cannot see editable mappings
	MYPYPATH=.venv/typing $(BIN)/mypy

docs: .venv/documented
	mkdir -p .venv/sources/medclipsam
	for f in engine export train benchmarks; do \
	  ln -sfn ../../../$$f .venv/sources/medclipsam/$$f; done  # the API pages read sources by name
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

figures: .venv/developed  # what the documents say of benchmarks/results/*.json, made anew
	$(BIN)/python -m medclipsam.benchmarks.figures

bench-guard: .venv/developed  # a few ratios that must not fall: nothing became much slower
	$(BIN)/python -m medclipsam.benchmarks.guard

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/installed: .venv/bin/python setup.py pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/developed: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

.venv/documented: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

clean:
	rm -rf .venv demo site build dist *.egg-info
