# Two commands on a fresh machine with Python 3.11: `make demo` and `make test`. Both set up .venv themselves.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
QUIET := --quiet --no-compile --disable-pip-version-check
# what is imported is compiled then, once, even where the environment forbids Python to keep it
export PYTHONDONTWRITEBYTECODE :=
.PHONY: demo test slow shim node soak newcomer lint format lock samples dist docs clean

demo: $(VENV)/.inference  ## segment the sample scans; masks and pictures go to demo-output/
	$(BIN)/hemseg segment test/cases demo-output --overlay

PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 15
test: $(VENV)/.development  ## the test suite, a worker a core (nine minutes on two)
	$(PYTEST) -m "not slow"

slow: $(VENV)/.development  ## the rest of it: whole trainings, one with permuted labels, dying clusters (eight minutes)
	$(PYTEST) -m slow

shim: $(VENV)/.development  ## the built images under Grand Challenge's own shim, where Python 3.12 is available (SHIM=--short: three runs)
	$(BIN)/python test/container/shim/run.py $(SHIM)

node: $(VENV)/.development  ## the DICOM node beside Orthanc and dcmtk, where they are installed (docs/node.md)
	$(BIN)/python -m pytest -rs test/stress/orthanc.py

soak: export PYTHONPATH := $(CURDIR)
soak: $(VENV)/.development  ## broken files, kills, a thousand scans, other samplings: about an hour (docs/reliability.md)
	$(BIN)/python test/stress/fuzz.py --count 100000
	$(BIN)/python test/stress/kills.py --times 60
	$(BIN)/python test/stress/overhead.py
	$(BIN)/python test/stress/soak.py --scans 1000
	HEMSEG_EXAMPLES=20000 $(BIN)/python -m pytest test/hemseg/test_names.py -k "outside or nrrd"
	$(BIN)/python test/stress/invariance.py

newcomer: $(VENV)/.development  ## docs/training.md word for word, from nothing to a mask (a quarter of an hour; not in `make test`)
	$(BIN)/python test/stress/newcomer.py

lint: $(VENV)/.development  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.development
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

samples: $(VENV)/.development  ## make test/cases, test/truth and test/expected anew, with the present weights
	$(BIN)/python -m training samples

dist: $(VENV)/.development  ## dist/: wheel and source archive, weights included
	$(BIN)/python -m build

docs: $(VENV)/.docs  ## site/: the pages of docs/; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

LOCK := $(BIN)/pip-compile -q --generate-hashes --strip-extras --allow-unsafe --no-header --no-emit-index-url \
	--no-emit-find-links --no-emit-trusted-host
lock: $(VENV)/.inference  ## requirements*.in -> requirements*.txt: every version, every file's hash
	$(LOCK) --upgrade requirements.in -o requirements.txt
	$(LOCK) --upgrade -c requirements.txt requirements-serve.in -o requirements-serve.txt
	$(LOCK) --upgrade -c requirements.txt requirements-cuda.in -o requirements-cuda.txt

# pip wants hashes for all or for none: the extras follow the versions alone
$(VENV)/constraints.txt: requirements.txt $(VENV)/.python
	@sed -E '/^ *--hash/d; s/ *\\$$//' requirements.txt > $@

$(VENV)/.python:
	@"$(PYTHON)" -c 'import sys; v = sys.version_info[:2]; sys.exit(v < (3, 11) and f"hemseg needs Python 3.11, {sys.executable} is {v[0]}.{v[1]}; run make PYTHON=/path/to/python3.11")'
	"$(PYTHON)" -m venv $(VENV)
	@touch $@

$(VENV)/.inference: $(VENV)/.python requirements.txt pyproject.toml
	$(BIN)/pip install $(QUIET) -r requirements.txt
	$(BIN)/pip install $(QUIET) --no-deps --editable .
	@touch $@

$(VENV)/.development: $(VENV)/.inference $(VENV)/constraints.txt
	$(BIN)/pip install $(QUIET) --constraint $(VENV)/constraints.txt --editable '.[training,test]'
	@touch $@

$(VENV)/.docs: $(VENV)/.inference
	$(BIN)/pip install $(QUIET) --editable '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) demo-output build dist site *.egg-info
