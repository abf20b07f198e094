# Every target sets up what it needs. The variables below go to the commands as they are:
#   make repo SPEC=my.toml CHECKPOINT=my.pt OUT=my-models
# Which target takes which stands in its line of help, and nowhere else: build/make/variables.py refuses all others by it. `make help`
# shows those lines in this order, under the headings that begin with ##@.
PYTHON ?= python3
SPEC ?=
CHECKPOINT ?=
OUT ?=
DATA ?=
LEARNERS ?=
BUDGET ?=
NETWORK ?=
FACTORY ?=
DEVICE ?=
LAYOUT ?=
NETWORKS ?=
SAMPLE ?=
RUNGS ?=
QUICK ?=
PUBLISH ?=
URL ?=
HTTP_URL ?=
METRICS_URL ?=
P99_MS ?=
# Learners' lengths say something of knowledge tracing alone.
LENGTHS ?= $(if $(SPEC)$(filter-out dkt gru transformer,$(NETWORK)),,$(firstword $(wildcard ../shared/data/*/)))
HTTP_PORT ?= 8000
GRPC_PORT ?= 8001
METRICS_PORT ?= 8002
HEALTH_PORT ?= 8003
ANNOUNCE_S ?= 5
ADDRESS ?= 127.0.0.1
TLS ?=
MUTUAL ?=
RENEW ?=
OPEN ?=
TRACE ?=
SOAK_S ?= 3600
BASE ?=
IMAGE ?= lastrow
FILES ?=
REPOSITORY ?= models
TOP ?=
CANDIDATES ?=
ALL ?=

VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.installed
PEERS := .venv-peers/.installed
MODEL := $(if $(SPEC),--spec '$(SPEC)') $(if $(CHECKPOINT),--checkpoint '$(CHECKPOINT)') \
	$(if $(DATA),--data '$(DATA)') $(if $(LEARNERS),--learners '$(LEARNERS)') $(if $(NETWORK),--network '$(NETWORK)')
TARGET := $(MODEL) $(if $(OUT),--out '$(OUT)') $(if $(LAYOUT),--layout '$(LAYOUT)')
SWEPT = $(if $(SPEC),--spec '$(SPEC)') $(if $(CHECKPOINT),--checkpoint '$(CHECKPOINT)') $(if $(OUT),--out '$(OUT)') \
	$(if $(NETWORK),--network '$(NETWORK)') $(OWN) $(if $(QUICK),--quick)
OWN := $(if $(FACTORY),--factory '$(FACTORY)') $(if $(DEVICE),--device '$(DEVICE)')

.DEFAULT_GOAL := help
override GOALS := $(or $(MAKECMDGOALS),$(.DEFAULT_GOAL))
override GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
override REFUSED := $(if $(GIVEN),$(shell $(PYTHON) build/make/variables.py '$(firstword $(MAKEFILE_LIST))' '$(GOALS)' '$(GIVEN)'))
$(if $(REFUSED),$(error $(REFUSED)))
.PHONY: help setup demo test train repo inspect precision evaluate lint-config serve serve-tls image score bench bench-peers stages \
	analyze tune test-unit test-faults test-nightly test-transformers soak test-newest lint lock clean

##@ Get going

help: ## list every target
	@awk -F ':.*## ' '/^##@ / {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z-]+:.*## / {sub(/ \[/, sprintf("\n%15s[", ""), $$2); printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(SETUP) ## make .venv with everything installed [PYTHON=of every target]
# What the lock pins comes by checksum; pip and the build backend, which install the project itself, are among it. Which of
# PyTorch's two builds belongs to this machine, build/make/lock.py says. The commands come last and alone: a .venv in which they were
# still the project's own loses them with the old project.
$(SETUP): pyproject.toml build/pyproject.toml $(wildcard requirements*.lock)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --progress-bar on --require-hashes -r requirements.lock
	torch=$$($(BIN)/python -m build.make.lock torch) && $(BIN)/python -m pip install --progress-bar on --require-hashes -r $$torch
	$(BIN)/python -m pip install --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip install --no-deps --no-build-isolation --editable ./build
	@touch $(SETUP)

demo: $(SETUP) ## build, serve, ask for several learners, compare with PyTorch, stop [SPEC= CHECKPOINT= OUT= DATA=of real learners LEARNERS= NETWORK= DEVICE= LAYOUT=]
	@$(BIN)/python -m build demo $(TARGET) $(if $(DEVICE),--device '$(DEVICE)')

# Unit tests and the examples in docstrings share nothing: two processes of one thread each. The rest mostly waits for servers: three
# processes, a server of their own each, a file in one of them, the longest files first.
UNIT = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --doctest-modules tests/unit build/core build/model ensemble -n 2 --dist worksteal
REST = $(BIN)/python -m pytest tests/benchmarks tests/faults tests/integration -n 3 --dist loadfile --no-loadscope-reorder

test: $(SETUP) ## run every test: unit, then integration against a real tritonserver
	$(UNIT)
	$(REST)

##@ Your own model

train: $(SETUP) ## train a reference model [NETWORK=dkt|gru|transformer DATA=folder of fold*.csv LEARNERS= BUDGET=seconds SPEC= CHECKPOINT=]
	@$(BIN)/python -m build train $(MODEL) $(if $(BUDGET),--budget $(BUDGET))

repo: $(SETUP) ## build the model repository, and only what changed [SPEC= CHECKPOINT= FACTORY= NETWORK= DEVICE=gpu LAYOUT=single DATA= LEARNERS= OUT=]
	@$(BIN)/python -m build repo $(TARGET) $(OWN)

inspect: $(SETUP) ## say what a model takes and answers, and write a spec of it to change [CHECKPOINT=model.onnx, or weights of FACTORY=module:function OUT=spec.toml]
	@$(BIN)/python -m build inspect $(if $(CHECKPOINT),--checkpoint '$(CHECKPOINT)') $(if $(FACTORY),--factory '$(FACTORY)') $(if $(OUT),--out '$(OUT)')

precision: $(SETUP) ## AUC of the core in float32, float16 and int8, on unseen learners [NETWORK= SPEC= CHECKPOINT= DATA= LEARNERS=]
	@$(BIN)/python -m build precision $(MODEL)

evaluate: $(SETUP) ## train, and score what was held out: served, by PyTorch, by something simpler [DATA= LEARNERS= NETWORK= or NETWORKS=dkt,transformer BUDGET= SAMPLE=]
	@$(BIN)/python -m build evaluate $(if $(DATA),--data '$(DATA)') $(if $(LEARNERS),--learners '$(LEARNERS)') \
		$(if $(or $(NETWORKS),$(NETWORK)),--networks '$(or $(NETWORKS),$(NETWORK))') $(if $(BUDGET),--budget $(BUDGET)) $(if $(SAMPLE),--sample $(SAMPLE))

lint-config: $(SETUP) ## find settings of a model repository that do nothing or harm [OUT=folder, anyone's]
	@$(BIN)/python -m ensemble lint '$(or $(OUT),models)'

##@ Serve

SERVE = $(BIN)/python -m build serve $(TARGET) $(OWN) --address '$(ADDRESS)' \
	--http-port $(HTTP_PORT) --grpc-port $(GRPC_PORT) --metrics-port $(METRICS_PORT) \
	--health-port $(HEALTH_PORT) --announce-s $(ANNOUNCE_S) \
	$(if $(OPEN),--open '$(OPEN)') $(if $(TRACE),--trace '$(TRACE)')

serve: $(SETUP) ## serve until Ctrl-C, on this machine alone [ADDRESS= HTTP_PORT= GRPC_PORT= METRICS_PORT= HEALTH_PORT= ANNOUNCE_S= TLS=folder MUTUAL=1 OPEN= TRACE=url SPEC= CHECKPOINT= FACTORY= NETWORK= DEVICE= LAYOUT= DATA= LEARNERS= OUT=]
	@$(SERVE) $(if $(TLS),--tls '$(TLS)') $(if $(MUTUAL),--mutual)

serve-tls: $(SETUP) ## serve with test certificates, to clients that show one of them [TLS=folder they go to, or are in RENEW=1 ADDRESS= HTTP_PORT= GRPC_PORT= METRICS_PORT= HEALTH_PORT= ANNOUNCE_S= OPEN= TRACE= SPEC= CHECKPOINT= FACTORY= NETWORK= DEVICE= LAYOUT= DATA= LEARNERS= OUT=]
	@$(SERVE) --tls '$(or $(TLS),build/artifacts/tls)' --test-certificates --mutual $(if $(RENEW),--renew)

image: ## a container image with a repository in it, by docker [BASE=Triton's image, needed OUT=repository, models without it IMAGE=its name]
	docker build --build-arg 'BASE=$(BASE)' --build-context repository=$(or $(OUT),models) \
		--file build/deploy/container/Dockerfile --tag '$(IMAGE)' .

##@ Score

score: $(SETUP) ## answer histories by the million without a server [FILES=tables or folders of them OUT=folder of the parts, both needed REPOSITORY= TOP=10 CANDIDATES=file ALL=1]
	@$(BIN)/python -m build score $(FILES) --out '$(OUT)' --repository '$(REPOSITORY)' $(if $(TOP),--top $(TOP)) \
		$(if $(CANDIDATES),--candidates '$(CANDIDATES)') $(if $(ALL),--all)

##@ Measure

bench: $(SETUP) ## measure every step from naive Triton to this one [RUNGS=0,1,4-8,floor QUICK=1 PUBLISH=1 LENGTHS= NETWORK= DEVICE=gpu SPEC= CHECKPOINT= FACTORY= DATA= LEARNERS=]
	@$(BIN)/python -m build bench $(MODEL) $(OWN) $(if $(LENGTHS),--lengths '$(LENGTHS)') $(if $(RUNGS),--rungs '$(RUNGS)') $(if $(QUICK),--quick) \
		$(if $(PUBLISH),--publish)

$(PEERS): pyproject.toml
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --upgrade 'pip>=25.1' # the first that reads dependency groups
	.venv-peers/bin/python -m pip install --progress-bar on --group peers
	@touch $(PEERS)

bench-peers: $(SETUP) $(PEERS) ## serve the same core by other servers, in a .venv-peers of their own, and compare [QUICK=1 PUBLISH=1 NETWORK= SPEC= CHECKPOINT= FACTORY= DATA= LEARNERS=]
	@$(BIN)/python -m build bench-peers $(MODEL) $(if $(FACTORY),--factory '$(FACTORY)') \
		$(if $(QUICK),--quick) $(if $(PUBLISH),--publish)

stages: $(SETUP) ## say where each microsecond of a request goes, as an ensemble and as one model [QUICK=1 PUBLISH=1 NETWORK= SPEC= CHECKPOINT= FACTORY= DATA= LEARNERS=]
	@$(BIN)/python -m build stages $(MODEL) $(if $(FACTORY),--factory '$(FACTORY)') $(if $(QUICK),--quick) $(if $(PUBLISH),--publish)

analyze: $(SETUP) ## sweep ensemble and core with Model Analyzer, and draw what it found [QUICK=1 URL=host:port HTTP_URL= METRICS_URL= SPEC= CHECKPOINT= FACTORY= NETWORK= DEVICE= OUT=]
	@$(BIN)/python -m build analyze $(SWEPT) $(if $(URL),--url '$(URL)') $(if $(HTTP_URL),--http-url '$(HTTP_URL)') \
		$(if $(METRICS_URL),--metrics-url '$(METRICS_URL)')

##@ Tune

tune: $(SETUP) ## sweep, choose under a latency budget, write the choice into the spec if it gains [P99_MS= QUICK=1 SPEC= CHECKPOINT= FACTORY= NETWORK= DEVICE= OUT=]
	@$(BIN)/python -m build tune $(SWEPT) $(if $(P99_MS),--p99-ms $(P99_MS))

##@ Develop

test-unit: $(SETUP) ## run the tests that need no server, and the examples in docstrings
	$(UNIT)

test-faults: $(SETUP) ## bad input, bursts, crashes, reloads, shutdowns: a few minutes of them, against real servers
	$(BIN)/python -m pytest tests/faults

test-nightly: $(SETUP) ## the tests that take long or measure: figures, many repeats, thousands of requests
	$(BIN)/python -m pytest tests/nightly

# On top of .venv, and not in it: what is there stays what the lock says.
LIBRARY := .venv-transformers
$(LIBRARY)/.installed: $(SETUP)
	$(BIN)/python -m venv --clear $(LIBRARY)
	$(BIN)/python -c "import sysconfig; print(f'import site; site.addsitedir({sysconfig.get_path(\"purelib\")!r})')" \
		> $$(echo $(LIBRARY)/lib/python*/site-packages)/below.pth
	$(LIBRARY)/bin/python -m pip install --progress-bar on 'lastrow[transformers]'
	@touch $@

test-transformers: $(LIBRARY)/.installed ## models of the transformers library, built in parity with it, in a .venv-transformers on top of .venv
	$(LIBRARY)/bin/python -m pytest tests/nightly/test_transformers.py -k 'GPT2-inputs or Bert-inputs'

soak: $(SETUP) ## good and bad requests at 70 % of capacity for an hour, and what it did to memory and latency [SOAK_S=]
	@$(BIN)/python -m tests.faults.soak --seconds $(SOAK_S)

test-newest: BIN := .venv-newest/bin
test-newest: ## every test with the newest packages instead of the lock's, in a .venv-newest; what differs, and what broke
	$(PYTHON) -m venv --clear .venv-newest
	$(BIN)/python -m pip install --progress-bar on --upgrade pip --editable '.[test]' --editable ./build
	@$(UNIT) && $(REST); broke=$$?; $(BIN)/python -m build.make.lock compare; exit $$broke

# PyPI tells a release's advisories. Where they cannot be had, pip-audit fails as it does for a vulnerability, or passes, behind a
# mirror that has none: hence a release is asked for first. An advisory that does not apply is accepted by --ignore-vuln ID, with the
# reason beside it.
ADVISORIES = import requests; requests.get('https://pypi.org/pypi/pip/25.1/json', timeout=15).raise_for_status()
ACCEPTED :=

lint: $(SETUP) ## check style, formatting, types, and the installed packages for known vulnerabilities
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@if why=$$($(BIN)/python -c "$(ADVISORIES)" 2>&1); then $(BIN)/pip-audit --progress-spinner=off --skip-editable $(ACCEPTED); \
	else echo "NOT AUDITED: no advisories from PyPI here ($$(echo "$$why" | tail -n 1))"; fi

lock: ## resolve anew what pyproject.toml asks for, and write the lock: version and checksums of every package
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --upgrade 'pip>=25.1' # the first that reads dependency groups
	.venv-lock/bin/python -m pip install --quiet --upgrade --group lock
	.venv-lock/bin/python -m build.make.lock write .venv-lock/bin/uv

# A derived spec has a digest of its third line and those behind it in its second: one that was changed is somebody's.
clean: ## remove what was built; environments (.venv*) stay, and specs that somebody changed
	@find build/artifacts -name spec.toml 2>/dev/null | while read -r spec; do \
		digest=$$(tail -n +3 "$$spec" | sha256sum | cut -c 1-64); \
		if sed -n 2p "$$spec" | grep -qF "$$digest"; then rm "$$spec"; else echo "kept: $$spec"; fi; done
	@test ! -d build/artifacts || find build/artifacts -depth \( -type d -empty -o ! -type d ! -name spec.toml \) -delete
	rm -rf models/core/1/model.onnx* $(addprefix models/*/1/,contract.py values.py window.py chain.py) .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv*' -exec rm -rf {} +
