# What a person does with this project. `make` alone lists it.

DATA   ?= shop
PRESET ?= standard
NAME   ?=
ARGS   ?=

# Two threads on two busy cores are slower than one for models this small.
OMP_NUM_THREADS        ?= 1
TOKENIZERS_PARALLELISM ?= false
export OMP_NUM_THREADS TOKENIZERS_PARALLELISM

BIN     := .venv/bin
STAMP   := .venv/installed
PYTHONS := $(or $(PYTHON),python3.13 python3.12 python3.11 python3)

# $(call timed,command,what): run, say the wall clock seconds, keep the exit status.
timed = begin=$$(date +%s); $(1); status=$$?; echo "$(2): $$(( $$(date +%s) - begin )) s"; exit $$status

.DEFAULT_GOAL := help
.PHONY: help setup reproduce test lab clean

help:       ## list these targets
	@sed -n 's/^\([a-z]*\): .*## /  make \1#/p' Makefile | awk -F'#' '{ printf "%-18s %s\n", $$1, $$2 }'

setup: $(STAMP) ## install the pinned environment into .venv (PYTHON=python3.12 to choose the interpreter)

# The stamp comes last: an installation that was cut off starts again.
$(STAMP): requirements.txt pyproject.toml
	@for python in $(PYTHONS); do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        echo "creating .venv with $$python"; exec "$$python" -m venv .venv; \
	    fi; \
	done; \
	echo "nullrec needs Python 3.11 or newer; tried: $(PYTHONS). Name yours: make setup PYTHON=..."; \
	exit 1
	@echo "installing requirements.txt: a few minutes and gigabytes the first time"
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

reproduce: setup ## run all notebooks into reports/ (DATA=shop PRESET=quick|standard|paper NAME= ARGS=)
	@$(call timed,$(BIN)/nullrec reproduce --data "$(DATA)" --preset "$(PRESET)" \
	    $(if $(NAME),--name "$(NAME)") $(ARGS),reproduced without installation in)

# Tests must not depend on a network: the encoder's weights come with the environment.
test: export HF_HUB_OFFLINE = 1
# Notebooks are checked in a folder of their own, so that no stored run of earlier code stands in for a fresh one.
test: setup ## everything CI runs: the tests, and every notebook against its stored outputs
	@rm -rf build/checked && mkdir -p build/checked/reports && cp -r reports/papers reports/profiles build/checked/reports
	@mkdir build/checked/notebooks && cp notebooks/*.ipynb build/checked/notebooks
	@$(call timed,$(BIN)/python -m pytest --quiet --durations=10 --nbval --nbval-current-env \
	    --nbval-sanitize-with tests/notebooks/nbval-sanitize.cfg tests build/checked/notebooks,tested in)

lab: setup ## open the notebooks in JupyterLab
	$(BIN)/python -m jupyterlab --notebook-dir=notebooks

clean: ## remove caches; data, runs and reports stay
	find . -path ./.venv -prune -o -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -exec rm -rf {} +
	rm -rf .pytest_cache .hypothesis build
