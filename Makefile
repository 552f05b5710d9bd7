# Everything this project does, by name; `make` alone prints the list. An executed notebook is a file, made aside and
# moved into place, so what was interrupted goes on where it stopped, and only what changed is done again.
PYTHON ?= python3
TRACES ?= tables

# One rendering: where it builds, where its exhibits go, which measurements it reads, in which size, which notebooks.
B := build$(if $(filter public,$(TRACES)),/public)
OUT := $(B)/figures
HERE = B=$(B)/here OUT=$(B)/here MEASURED=build/measured REST=$(OUT)
COMMITTED := $(if $(filter build,$(B)),figures)
MEASURED := data/measured
QUICK := False
OF_MEASURED := endpoints dispatch migration live pd_device elastic objectives quality overhead
STEMS := $(OF_MEASURED) elastic_disco campaign load system traces qoe arrivals prediction sensitivity costs optimal chat summary
EXECUTED := $(STEMS:%=$(B)/notebooks/%.ipynb)
MEASURES := $(patsubst %,$(B)/notebooks/measure_%.ipynb,device live pd_device overhead elastic objectives quality)
COMMON = quick=$(QUICK) source=$(TRACES) out=$(OUT) measurements=$(MEASURED) read=$(OUT) rest=$(REST) --afresh

PY := .venv/bin/python
ARTIFACT := $(PY) -m artifact
SUB := $(MAKE) --no-print-directory
CODE := $(wildcard disco_core/*.py disco_core/*/*.py disco_core/*/*/*.py notebooks/artifact/*.py \
	$(foreach kind,py mplstyle jinja css txt,notebooks/artifact/*/*.$(kind)))
export PYTHONPATH := notebooks
unexport PYTHONHOME
.PHONY: help setup pair figures reproduce quick reference campaign load elastic objectives optimal report claims test test-all \
	lint bench data lab lock clean clean-all in-figures in-reproduce in-quick in-reference render force
$(if $(filter tables public,$(TRACES)),,$(error TRACES=$(TRACES) is not known; it is tables (committed) or public (series)))
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
setup: .venv/.setup ## make the environment in .venv (once, about 5 minutes)
pair: setup ## what DiSCo would buy you, from SERVER= MODEL= DEVICE= or a TRACE=, on build/pair.html; alone it lists all
	@$(ARTIFACT) pair --make
figures: setup ## every exhibit and verdict from data/ into figures/; TRACES=public: into build/public/
reproduce: setup ## hold the same against figures/, measure on this machine, and show its values beside the reference's
quick: setup ## every exhibit in small, into build/quick/
reference: setup ## for maintainers: measure on this machine, and make that data/measured/ and figures/
figures reproduce quick reference: ; @$(ARTIFACT) alone $(SUB) in-$@
campaign: setup ## 1,000 real streams under faults, into build/measured/campaign (no part of reproduce)
load: setup ## a llama.cpp server at five loads (8 minutes), into build/measured/load
elastic: setup ## ElastiLM's levels made, timed and evaluated on public texts (up to an hour), into build/measured/elastic
objectives: setup ## ElastiLM's choices evaluated on public texts and 1,800 requests (40 minutes), into build/measured/objectives
optimal: setup ## the optimal plan on other requests of the public series (6 minutes), into build/measured/optimal
campaign load elastic objectives optimal: ; @$(ARTIFACT) alone $(SUB) EVALUATE=True $(B)/notebooks/measure_$@.ipynb
in-figures:
	@$(SUB) -j2 render
	@failed=0; $(if $(COMMITTED),$(ARTIFACT) compare $(OUT) figures --update || failed=1;) \
		$(ARTIFACT) claims $(or $(COMMITTED),$(OUT)) || failed=1; exit $$failed
# Times are measured first and one after the other, since what else runs would be in them. What breaks stops no other.
in-reproduce:
	@trap 'exit 130' INT TERM; broke=; try() { what=$$1; shift; "$$@" || broke="$$broke, $$what"; }; mkdir -p $(B)/here; \
	try "measuring time" $(SUB) -kj1 $(filter-out %quality.ipynb,$(MEASURES)); \
	try "measuring quality or rendering the reference" $(SUB) -kj2 $(filter %quality.ipynb,$(MEASURES)) render; \
	try "rendering this machine's" $(SUB) -kj2 render STEMS="$(OF_MEASURED) summary" $(HERE); \
	try "the report" $(ARTIFACT) report $(OUT) --here $(B)/here --out $(B)/report.html; \
	$(if $(COMMITTED),try "holding it against figures/" $(ARTIFACT) compare $(OUT) figures;) \
	try "the reference's verdicts" $(ARTIFACT) claims $(OUT) --here $(B)/here; \
	[ -z "$$broke" ] || { echo "make reproduce: went wrong (see above): $${broke#, }" >&2; exit 1; }
in-quick:
	@$(SUB) -j2 render B=$(B:build%=build/quick%) QUICK=True && $(ARTIFACT) claims $(B:build%=build/quick%)/figures --quick
in-reference:
	@$(SUB) -j1 $(filter-out %elastic.ipynb %objectives.ipynb,$(MEASURES)) && $(ARTIFACT) reference && $(SUB) in-figures
render:
	+@$(ARTIFACT) sweep $(OUT) $(EXECUTED) && $(SUB) $(EXECUTED) && $(ARTIFACT) gallery $(OUT)
# Those that measure are always started: they see by settings, code and model whether to measure. Nothing rests on chat.
$(B)/notebooks/%.ipynb: notebooks/%.ipynb $(CODE) $(wildcard data/*.csv $(MEASURED)/*/manifest.json) requirements.lock
	@$(if $(filter public,$(TRACES)),$(ARTIFACT) fetch >/dev/null &&) $(ARTIFACT) run $< --out $(@D) --common $(COMMON) \
		>/dev/null $(if $(filter chat,$*),|| echo "chat did not run to its end; nothing rests on it" >&2)
$(B)/notebooks/measure_%.ipynb: COMMON = quick=$(QUICK) evaluate=$(or $(EVALUATE),False)
$(MEASURES) $(patsubst %,$(B)/notebooks/measure_%.ipynb,campaign load optimal): force
$(B)/notebooks/summary.ipynb: $(filter-out %/summary.ipynb %/chat.ipynb,$(EXECUTED))
report: setup ## every claim and exhibit of figures/ on one page, build/report.html
claims: setup ## the verdicts in figures/, without computing anything
report claims: ; @$(ARTIFACT) $@
test: setup ## the tests to run while working (5 minutes); ARGS="-k claims" passes options on
test-all: setup ## those and the slow ones: notebooks by `make quick`, models, a browser, public traces (those that are there)
test test-all: ; $(PY) -m pytest $(if $(filter test,$@),-m "not slow") $(ARGS)
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
