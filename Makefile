# `make run` and `make test` are all that a reader needs; each makes the environment it wants.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
SUPPORTED := $(shell sed -n 's/.* :: Python :: \(3\.[0-9]*\)".*/\1/p' pyproject.toml)

version = $(shell $(1) -c '$(2)import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
GIVEN = $(call version,$(PYTHON))
WANTED = $(if $(filter file,$(origin PYTHON)),$(SUPPORTED),$(GIVEN))
# .venv is kept where it was installed to the end, has pip and is of the PYTHON that was asked for.
WHOLE := $(and $(wildcard $(INSTALLED)),$(filter $(call version,$(BIN)/python,import pip; ),$(WANTED)))

# A file of tests, or a notebook, runs in one of two processes from its beginning to its end.
TWO_AT_A_TIME := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

HAS_PAPER_DATA := import sys, dlcf.data as d; n = 'ml-latest-small'; sys.exit(d.resolve_dataset(n) != n)

.DEFAULT_GOAL := help
.PHONY: help setup anew run test pythons mutants lint figures notebooks bench compare prequential ablation replication related components tune lock clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(INSTALLED)  ## make the environment in .venv

anew:
	$(if $(filter $(GIVEN),$(SUPPORTED)),,$(error $(PYTHON) is $(if $(GIVEN),Python $(GIVEN),no Python \
		that runs); supported are $(SUPPORTED): make setup PYTHON=python$(lastword $(SUPPORTED))))
	$(PYTHON) -m venv --clear $(VENV)

$(INSTALLED): pyproject.toml requirements.lock $(if $(WHOLE),,anew)
	@rm -f $@
	$(BIN)/python -m pip install --quiet --constraint requirements.lock \
		--editable ".[explain,notebooks,test,tune,widgets]"
	@$(BIN)/python -m pip install --quiet --constraint requirements.lock --only-binary implicit,myfm \
		--editable ".[baselines]" \
		|| echo "myfm or implicit has no wheel for this Python: their models and tests are left out."
	@touch $@

run: setup  ## execute all notebooks into runs/, regenerate figures/, results/ and the README's table
	$(BIN)/dlcf run

test: setup lint  ## unit and contract tests, and the notebooks against their committed outputs
	@if $(BIN)/python -c "$(HAS_PAPER_DATA)"; then \
		DLCF_CHECK_RESULTS=1 $(TWO_AT_A_TIME) notebooks tests --nbval \
			--nbval-sanitize-with tests/nbval_sanitize.cfg --nbval-cell-timeout 1800; \
	else \
		echo "The committed outputs are of ml-latest-small: executing the notebooks, not comparing."; \
		$(TWO_AT_A_TIME) tests && $(BIN)/dlcf run; \
	fi

pythons:  ## unit tests on each supported Python that PATH, pyenv or uv has, in .venv-3.x
	@.ci/pythons $(SUPPORTED)

mutants: setup  ## which small errors in the modules that numbers rest on do their tests not see?
	@$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable ".[mutation]"
	OMP_NUM_THREADS=1 $(BIN)/mutmut run --max-children 2
	$(BIN)/mutmut results

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

figures: run  ## the same as run: every figure is written by a notebook

notebooks: setup  ## execute the notebooks and keep their outputs in notebooks/
	$(BIN)/dlcf run --keep
	$(BIN)/dlcf prose

bench: setup  ## time and memory beside plain ways and other libraries: results/bench.json
	@$(BIN)/python -m pip install --quiet --constraint requirements.lock --only-binary :all: \
		--editable ".[bench,parquet]" || echo "Some library has no wheel for this Python: it is left out."
	$(BIN)/python -m bench $(SECTIONS)

compare: setup  ## all models, 5 seeds, intervals and tests: results/comparison*.json (two hours)
	$(BIN)/dlcf compare
	$(BIN)/dlcf compare --dataset ml-100k --splits random \
		--models deepcf-plus fm-side fm-implicit fm bias --output results/comparison-ml-100k.json
	$(BIN)/dlcf compare --splits random user-temporal --output results/comparison-related.json \
		--models deepcf-plus deepconn cke neumf "neumf, dot" sasrec item2vec cdl cdae multvae \
			mf mda-cf ials ease popular bias

prequential: setup  ## each later rating from those before it: results/prequential.json (half an hour)
	$(BIN)/dlcf prequential

ablation: setup  ## what each ingredient of deepcf-plus buys: results/ablation.json (about an hour)
	$(BIN)/dlcf ablation

replication: setup  ## the paper's network by every reading of the paper: results/replication.json
	$(BIN)/dlcf replication

related: setup  ## what the related systems claim, put to their papers' tests: results/related.json (a quarter of an hour)
	$(BIN)/dlcf related

components: setup  ## what each part of the paper's network is worth: results/components.json
	$(BIN)/dlcf components

DATASET ?= ml-latest-small
SPLIT ?= random
TRIALS ?= 30
MODELS ?= all
tune: setup  ## search settings on validation data: make tune DATASET=ml-1m TRIALS=30 MODELS="mf ease"
	$(BIN)/dlcf tune $(MODELS) --dataset "$(DATASET)" --split $(SPLIT) --trials $(TRIALS)

lock:  ## resolve requirements.lock anew from pyproject.toml, one version for all Pythons (needs uv)
	uv pip compile --quiet --universal --upgrade --fork-strategy fewest --python-version 3.11 --all-extras \
		pyproject.toml --no-header --no-annotate --output-file requirements.lock

clean:  ## remove the environment, trained models and runs; data/ stays
	rm -rf $(VENV) $(VENV)-3.* .cache runs .mypy_cache .pytest_cache .ruff_cache *.egg-info
