# Everything this project does, by name; `make` alone prints the list. An executed notebook is a file, made aside and
# moved into place, so what was interrupted goes on where it stopped, and only what changed is done again.
PYTHON ?= python3
TRACES ?= tables
ARGS ?=

# One rendering: where it builds, where its exhibits go, which measurements it reads, in which size, which notebooks.
B := build$(if $(filter public,$(TRACES)),/public)
OUT := $(B)/figures
MEASURED := data/measured
QUICK := False
OF_MEASURED := endpoints dispatch migration live pd_device quality overhead
STEMS := $(OF_MEASURED) traces qoe arrivals prediction sensitivity costs chat summary
EXECUTED := $(STEMS:%=$(B)/notebooks/%.ipynb)
MEASURES := $(patsubst %,$(B)/notebooks/measure_%.ipynb,device live pd_device overhead quality)
COMMON = quick=$(QUICK) source=$(TRACES) out=$(OUT) measurements=$(MEASURED) read=$(OUT) rest=$(REST)

PY := .venv/bin/python
ARTIFACT := $(PY) -m artifact
SUB := $(MAKE) --no-print-directory
CODE := $(wildcard disco_core/*.py disco_core/*/*.py disco_core/*/*/*.py notebooks/artifact/*.py notebooks/artifact/*/*.py)
export PYTHONPATH := notebooks
unexport PYTHONHOME
.PHONY: help setup figures reproduce quick reference report claims test lint bench data lab lock clean clean-all \
	in-figures in-reproduce in-quick in-reference render force
ifeq ($(filter tables public,$(TRACES)),)
$(error TRACES=$(TRACES) is not known; it is tables (the committed tables) or public (the public series))
endif

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
setup: .venv/.setup ## make the environment in .venv (once, about 5 minutes)
figures: setup ## every exhibit and verdict from data/ into figures/; TRACES=public: into build/public/
reproduce: setup ## hold the same against figures/, measure on this machine, and show its values beside the reference's
quick: setup ## every exhibit in small, into build/quick/
reference: setup ## for maintainers: measure on this machine, and make that data/measured/ and figures/
figures reproduce quick reference:
	@$(ARTIFACT) alone $(SUB) in-$@
in-figures:
	@$(SUB) -j2 render
	@$(ARTIFACT) $(if $(filter build,$(B)),compare $(OUT) figures --update,claims $(OUT))
# Measuring comes first and one after the other, since what else runs would be in it; but quality measures no time.
in-reproduce:
	@$(SUB) -j1 $(filter-out %quality.ipynb,$(MEASURES))
	@$(SUB) -j2 $(filter %quality.ipynb,$(MEASURES)) render
	@$(SUB) -j2 render B=build/here OUT=build/here MEASURED=build/measured STEMS="$(OF_MEASURED) summary" REST=$(OUT)
	@$(ARTIFACT) report $(OUT) --here build/here --executed $(B)/notebooks --out $(B)/report.html
	@failed=0; $(if $(filter build,$(B)),$(ARTIFACT) compare $(OUT) figures || failed=1;) \
		$(ARTIFACT) claims $(OUT) --here build/here || failed=1; exit $$failed
in-quick:
	@$(SUB) -j2 render B=$(B:build%=build/quick%) QUICK=True
	@$(ARTIFACT) claims $(B:build%=build/quick%)/figures --quick
in-reference:
	@$(SUB) -j1 $(MEASURES)
	@$(ARTIFACT) reference
	@$(SUB) in-figures
render: $(EXECUTED)
	@$(ARTIFACT) gallery $(OUT)

# One rule for every notebook. Those that measure are always started: by the content of settings, code and model they
# see whether there is something to do. Nothing rests on chat, which is there to be used.
$(B)/notebooks/%.ipynb: notebooks/%.ipynb $(CODE) $(wildcard data/*.csv $(MEASURED)/*/manifest.json) requirements.lock
	@$(if $(filter public,$(TRACES)),$(ARTIFACT) fetch >/dev/null &&) $(ARTIFACT) run $< --out $(@D) --common $(COMMON) \
		>/dev/null $(if $(filter chat,$*),|| echo "chat did not run to its end; nothing rests on it" >&2)
$(MEASURES): COMMON = quick=$(QUICK)
$(MEASURES): force
$(B)/notebooks/summary.ipynb: $(filter-out %/summary.ipynb %/chat.ipynb,$(EXECUTED))

report: setup ## every claim and exhibit of figures/ on one page, build/report.html
claims: setup ## the verdicts in figures/, without computing anything
report claims:
	@$(ARTIFACT) $@
test: setup ## the tests; ARGS="-k claims" passes options on
	$(PY) -m pytest $(ARGS)
lint: setup ## ruff and mypy
	$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy
bench: setup ## speed against a plain transcription of the paper's algorithms
	$(PY) -m pytest tests/bench --override-ini addopts= --benchmark-only $(ARGS)
data: setup ## fetch the public traces and write the tables of data/ anew
	$(ARTIFACT) tables
lab: setup ## the index of the notebooks in JupyterLab
	$(PY) -m jupyterlab notebooks/index.ipynb --ServerApp.root_dir=. $(if $(filter 0,$(shell id -u)),--allow-root) $(ARGS)
lock: ## for maintainers: pin the packages of pyproject.toml anew (needs uv)
	@.ci/lock
clean: ## remove build/: executed notebooks, measurements, downloads
	rm -rf build
clean-all: clean ## remove .venv and the tools' caches as well
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks *.egg-info
.venv/.setup: .ci/setup requirements.lock pyproject.toml
	@PYTHON="$(PYTHON)" .ci/setup && touch $@
