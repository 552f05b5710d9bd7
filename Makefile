# Everything this project does, by name. `make` alone prints the list.
#
# Outputs are files, made aside and moved into place, so a run that was interrupted goes on where it stopped and a
# second one does only what a changed notebook, module or table asks for.

PYTHON ?= python3
TRACES ?= tables
ARGS ?=
QUICK ?=

VENV := .venv
PY := $(VENV)/bin/python
PACKAGES := $(VENV)/.packages
SETUP := $(VENV)/.setup

unexport PYTHONHOME
export PYTHONPATH := notebooks

# A run is full or quick, from the committed tables or the public series; only full from tables is committed.
B := build$(if $(QUICK),/quick)$(if $(filter public,$(TRACES)),/public)
F := $(if $(filter build,$(B)),figures,$(B)/figures)
MEASURED := build$(if $(QUICK),/quick)/measured/device.csv
LIVE := build$(if $(QUICK),/quick)/measured/live/requests.csv
PD := build$(if $(QUICK),/quick)/measured/pd/requests.csv
QUALITY := build$(if $(QUICK),/quick)/measured/quality/requests.csv
OVERHEAD := build$(if $(QUICK),/quick)/measured/overhead.csv
FETCHED := $(if $(filter public,$(TRACES)),build/traces/.complete)

STEMS := endpoints traces dispatch migration live pd_device quality qoe arrivals prediction sensitivity costs overhead chat summary
EXECUTED := $(STEMS:%=$(B)/notebooks/%.ipynb)
CODE := $(wildcard disco_core/*.py disco_core/systems/*/*.py notebooks/artifact/*.py notebooks/artifact/data/*.py notebooks/artifact/analysis/*.py notebooks/artifact/publish/figures.py notebooks/artifact/publish/*.mplstyle)
STREAMS := $(addprefix disco_core/,dispatch.py migration.py) $(wildcard disco_core/live/*.py disco_core/endpoints/*.py) $(addprefix notebooks/artifact/,analysis/scenario.py measure/answers.py)
TABLES := $(wildcard data/*.csv)
SET := quick=$(if $(QUICK),True,False) source=$(TRACES) out=$(F)

# $(call rendered,stem): what its notebook wrote, so that one removed or written over by hand is made again
rendered = $(foreach one,$(shell cat $(B)/notebooks/$1.exhibits 2>/dev/null),$(if $(wildcard $(one)),$(one),force))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
.PHONY: help setup reproduce quick measured results report claims test lint bench data lab lock clean clean-all force

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(SETUP) ## make the environment in .venv (once, about 5 minutes)

reproduce: ## every figure, table and verdict into figures/; TRACES=public: from the public series, into build/public/
	@$(MAKE) --no-print-directory measured
	@$(MAKE) --no-print-directory -j2 results

quick: ## the same in small, everything under build/quick/
	@$(MAKE) --no-print-directory -j2 QUICK=1 results

report: $(SETUP) ## every claim and exhibit of figures/ on one page, build/report.html
	@$(REPORT)

claims: $(SETUP) ## the verdicts in figures/, without computing anything
	@$(PY) -m artifact.publish.claims_table $(F)

test: $(SETUP) ## the tests; ARGS="-k claims" passes options on
	$(PY) -m pytest $(ARGS)

lint: $(SETUP) ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: $(SETUP) ## speed against a plain transcription of the paper's algorithms
	$(PY) -m pytest tests/bench --override-ini addopts= --benchmark-only $(ARGS)

data: $(SETUP) ## fetch the public traces and write the tables of data/ anew
	$(PY) -m artifact.data.tables

lab: $(SETUP) ## the index of the notebooks in JupyterLab
	$(PY) -m jupyterlab notebooks/index.ipynb $(ARGS)

# extras stay in the lock: where a pin is not the latest version, pip takes another for a requirement with an extra
lock: ## for maintainers: pin the packages of pyproject.toml anew (needs uv)
	@command -v uv >/dev/null || { echo "make lock: no uv on the PATH; install uv and run make lock again" >&2; exit 1; }
	uv pip compile pyproject.toml --extra artifact --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-strip-extras --upgrade -o requirements.lock

clean: ## remove build/: executed notebooks, measurements, downloads
	rm -rf build

clean-all: clean ## remove .venv and the tools' caches as well
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks *.egg-info

# --- the environment ---------------------------------------------------------------------------------------------

fail = { echo "make setup: $1" >&2; exit 1; }
installed = $(PY) -c 'import importlib.metadata as m, sys; \
	sys.exit("llama-cpp-python==" + m.version("llama-cpp-python") + " " not in open("requirements.lock").read())'

# Of llama.cpp only the library is used. Left out are its vision part and, by a file that CMake reads as that project
# starts, the helpers of its command-line tools: half the time of the build.
LLAMA = -DLLAVA_BUILD=OFF '-DCMAKE_PROJECT_llama.cpp_INCLUDE=$(CURDIR)/$(VENV)/llama.cmake'

$(PACKAGES): requirements.lock
	@$(PY) -c '' 2>/dev/null || command -v "$(PYTHON)" >/dev/null \
		|| $(call fail,no '$(PYTHON)' on the PATH; install Python 3.11 or newer$(comma) or name one: make PYTHON=/path/to/python3)
	@$(PY) -c '' 2>/dev/null || "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| $(call fail,$$("$(PYTHON)" -V 2>&1) is too old; install Python 3.11 or newer$(comma) or name one: make PYTHON=/path/to/python3)
	@$(PY) -c '' 2>/dev/null || "$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null \
		|| $(call fail,$(PYTHON) has no venv module; install it (Debian and Ubuntu: the package python3-venv))
	@$(installed) 2>/dev/null \
		|| { command -v "$${CC:-cc}" && { command -v "$${CXX:-c++}" || command -v g++ || command -v clang++; }; } >/dev/null \
		|| $(call fail,no C and C++ compiler; install one (Debian and Ubuntu: g++; Fedora: gcc-c++; macOS: xcode-select --install))
	@$(PY) -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV)
	@$(installed) 2>/dev/null || echo "Installing the packages of requirements.lock; llama.cpp is built for this machine, which takes 2 or 3 minutes."
	@echo 'set(LLAMA_BUILD_COMMON OFF)' >$(VENV)/llama.cmake
	@CMAKE_ARGS="$${CMAKE_ARGS-$(LLAMA)}" $(PY) -m pip --disable-pip-version-check install --no-compile --require-hashes -r requirements.lock \
		|| $(call fail,pip could not install requirements.lock (see above); with the cause mended$(comma) make setup goes on from here)
	@touch $@

$(SETUP): $(PACKAGES) pyproject.toml
	@$(PY) -m pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation -e .
	@touch $@

comma := ,

# --- measure, compute, judge -------------------------------------------------------------------------------------

results: measured $(EXECUTED) $(F)/README.md $(B)/report.html
	@echo
	@$(PY) -m artifact.publish.claims_table $(if $(QUICK),--quick) $(if $(filter figures,$(F)),--readme) $(F) \
		&& echo "The exhibits are in $(F)/ (see $(F)/README.md)." \
		|| { echo "The exhibits are in $(F)/, but see the last line of the table." >&2; exit 1; }

# What is measured on this machine comes first and one after the other, since what else runs would be in it; notebooks
# then run two at a time. In small, where nothing is judged by what was measured, they do not wait for it.
measured: $(MEASURED) $(LIVE) $(PD) $(QUALITY) $(OVERHEAD) ## only what is measured on this machine, which takes longest
	@:

# Measuring is slow and its result is this machine's: only its own module, or another environment, asks for it again.
$(MEASURED): notebooks/artifact/measure/device.py $(PACKAGES) | $(SETUP)
	@echo "Measuring the device model on this machine"
	@$(PY) -m artifact.measure.device $(if $(QUICK),--quick) --out $@

$(LIVE): notebooks/artifact/measure/live.py $(STREAMS) data/prompts.csv $(PACKAGES) | $(SETUP)
	@echo "Running two live ends on this machine$(if $(QUICK),, (about a quarter of an hour; leave it to itself meanwhile))"
	@$(PY) -m artifact.measure.sessions $(if $(QUICK),--quick) --out $(@D)

$(PD): notebooks/artifact/measure/pd_device.py $(STREAMS) $(wildcard disco_core/systems/pd_device/*.py) data/prompts.csv $(PACKAGES) | $(SETUP)
	@echo "Running P/D-Device on them$(if $(QUICK),, (some minutes more))"
	@$(PY) -m artifact.measure.sessions pd $(if $(QUICK),--quick) --out $(@D)

$(QUALITY): notebooks/artifact/measure/quality.py notebooks/artifact/measure/judge.py $(STREAMS) data/prompts.csv $(PACKAGES) | $(SETUP)
	@echo "Letting them move answers as text$(if $(QUICK),, (some minutes more))"
	@$(PY) -m artifact.measure.sessions quality $(if $(QUICK),--quick) --out $(@D)

$(OVERHEAD): $(addprefix disco_core/,latency.py workload.py dispatch.py migration.py simulate.py) $(addprefix notebooks/artifact/,measure/overhead.py analysis/transcription.py) $(PACKAGES) | $(SETUP)
	@echo "Timing plans and decisions on this machine"
	@$(PY) -m artifact.measure.overhead $(if $(QUICK),--quick) --out $@

$(LIVE): | $(MEASURED)
$(PD): | $(LIVE)
$(QUALITY): | $(PD)
$(OVERHEAD): | $(QUALITY)

build/traces/.complete: notebooks/artifact/data/registry.txt $(PACKAGES) | $(SETUP)
	@$(PY) -m artifact.data.traces
	@touch $@

.SECONDEXPANSION:
$(B)/notebooks/endpoints.ipynb $(B)/notebooks/dispatch.ipynb: $(MEASURED)
$(B)/notebooks/migration.ipynb $(B)/notebooks/live.ipynb: $(LIVE)
$(B)/notebooks/pd_device.ipynb: $(PD)
$(B)/notebooks/quality.ipynb: $(QUALITY)
$(B)/notebooks/overhead.ipynb: $(OVERHEAD)
$(B)/notebooks/chat.ipynb: $(STREAMS)
$(EXECUTED): $(B)/notebooks/%.ipynb: notebooks/%.ipynb $(CODE) $(TABLES) $(FETCHED) $(PACKAGES) $$(call rendered,$$*) | $(SETUP)
	@$(PY) -m artifact.publish.run $< --out $(@D) \
		--set $(SET) $(addprefix measurements=,$(filter $(MEASURED) $(OVERHEAD),$^) \
		$(patsubst %/,%,$(dir $(filter $(LIVE) $(PD) $(QUALITY),$^)))) $(if $(filter summary,$*),read=$(F)) >/dev/null
	@ls -d $(F)/$*.* $(F)/$*_* 2>/dev/null >$(B)/notebooks/$*.exhibits || true

$(F)/README.md: $(EXECUTED) notebooks/artifact/publish/gallery.py
	@$(PY) -m artifact.publish.gallery $(F)

# In small, what is measured and what needs no measurement go side by side, each in its own order.
ifdef QUICK
$(B)/notebooks/qoe.ipynb: | $(B)/notebooks/traces.ipynb
$(B)/notebooks/arrivals.ipynb: | $(B)/notebooks/qoe.ipynb
$(B)/notebooks/prediction.ipynb: | $(B)/notebooks/arrivals.ipynb
$(addprefix $(B)/notebooks/,sensitivity.ipynb costs.ipynb chat.ipynb): | $(LIVE)
endif

# The whole, so it comes last.
$(B)/notebooks/summary.ipynb: $(filter-out %/summary.ipynb,$(EXECUTED))

REPORT = $(PY) -m artifact.publish.report $(F) --executed $(B)/notebooks --out $(B)/report.html

$(B)/report.html: $(F)/README.md notebooks/artifact/publish/report.py notebooks/artifact/publish/report.html.jinja
	@$(REPORT)

ifeq ($(and $(filter 1,$(words $(TRACES))),$(filter tables public,$(TRACES))),)
$(error TRACES=$(TRACES) is not known; it is tables (the committed tables) or public (the public series))
endif
