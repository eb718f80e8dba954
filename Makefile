# The template's own commands: make help
VENV ?= .venv
PYTHON ?= python3
PORT ?= 3000
# any value: stop after the first answer
ONCE ?=
# of make bench-peers
ROUNDS ?= 5

DEMO := build/demo/llm-service
# the demo's own model store, so that yours stays as it is
DEMO_STORE := $(CURDIR)/build/demo/bentoml

# The environment is up to date when its stamp carries the checksum of what it was made from.
READY := $(VENV)/.installed-$(shell cksum < requirements-dev.txt | cut -d ' ' -f 1)

.PHONY: help
help: ## show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' Makefile

$(READY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "Python 3.11 or newer is needed: name one with PYTHON=/path/to/python3.12 after make." >&2; exit 1; }
	@echo "Installing the template's tools into $(VENV)"
	@$(PYTHON) -m venv $(VENV) \
		|| { echo "$(VENV) could not be made: see above; Debian and Ubuntu need their python3-venv package." >&2; exit 1; }
	@$(VENV)/bin/python -m pip --disable-pip-version-check install --requirement requirements-dev.txt \
		|| { echo "The template's tools could not be installed: see above; then delete $(VENV) and run make again." >&2; exit 1; }
	@rm -f $(VENV)/.installed-* && touch $@

# Baking again keeps the environments, which are made again only when their pins changed, and nothing else.
.PHONY: bake
bake: $(READY)
	@test ! -d $(DEMO) || find $(DEMO) -mindepth 1 -maxdepth 1 ! -name .venv ! -name .engine -exec rm -rf {} +
	$(VENV)/bin/cookiecutter . --no-input --default-config --overwrite-if-exists --output-dir build/demo engine=transformers model_source=demo
	$(MAKE) --no-print-directory -C $(DEMO) install

.PHONY: demo
demo: bake ## bake the demo, serve it on PORT and stream one answer; ONCE=1 stops after it
	BENTOML_HOME=$(DEMO_STORE) $(MAKE) --no-print-directory -C $(DEMO) model
	BENTOML_HOME=$(DEMO_STORE) $(VENV)/bin/python scripts/demo.py $(DEMO) --port $(PORT) $(if $(ONCE),--once)

# What the deployment files are checked with: kubectl, Kubernetes' schemas, KServe's models. Without KServe's dependencies,
# which would bring its whole server: its models need none of them.
VALIDATORS := build/validators
VALIDATORS_READY := $(VALIDATORS)/.installed-$(shell cksum < tests/deploy/requirements.txt | cut -d ' ' -f 1)

.PHONY: validators
validators: $(VALIDATORS_READY)

$(VALIDATORS_READY):
	@echo "Installing what checks the deployment files into $(VALIDATORS)"
	@$(PYTHON) -m venv $(VALIDATORS)
	@$(VALIDATORS)/bin/python -m pip --disable-pip-version-check install --quiet --requirement tests/deploy/requirements.txt \
		&& $(VALIDATORS)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps 'kserve>=0.21,<0.22' \
		|| { echo "The validators could not be installed: see above; then delete $(VALIDATORS) and run make again." >&2; exit 1; }
	@rm -f $(VALIDATORS)/.installed-* && touch $@

.PHONY: test
test: bake validators ## test the template, the baked demo and the embedded engine behind it
	$(VENV)/bin/pytest tests --ignore=tests/engines --ignore=tests/container --ignore=tests/ray
	$(MAKE) --no-print-directory -C $(DEMO) lint test

.PHONY: engines
engines: $(READY)
	$(VENV)/bin/python tests/engines/environments/install.py vllm build/engines/vllm
	$(VENV)/bin/python tests/engines/environments/install.py sglang build/engines/sglang

# ENGINES=vllm or so runs some of them only; the table in README is written when all three ran
.PHONY: test-engines
test-engines: bake engines ## the same suites on the real vLLM, SGLang and transformers, on a CPU
	$(VENV)/bin/pytest tests/engines

# Nothing of it needs a Docker engine or a registry. Without root, the programs must be there already.
.PHONY: builders
builders:
	@{ command -v buildah && command -v podman && command -v runc && command -v debootstrap; } >/dev/null \
		|| test "$$(id -u)" != 0 \
		|| { apt-get update && apt-get install --yes --no-install-recommends buildah podman runc debootstrap; }

.PHONY: test-container
test-container: bake builders ## the demo's image, built and run for real without a Docker engine, as root
	$(VENV)/bin/pytest tests/container

# Ray with what it needs, over the demo's environment: a second copy of that would take minutes.
RAY := build/ray
RAY_PINS = *cookiecutter.project_slug*/deploy/ray/*requirements.txt*
RAY_READY := $(RAY)/.installed-$(shell cat $(RAY_PINS) *cookiecutter.project_slug*/pyproject.toml | cksum | cut -d ' ' -f 1)

$(RAY_READY): | bake
	@echo "Installing Ray into $(RAY)"
	@rm -rf $(RAY) && $(PYTHON) -m venv $(RAY)
	@$(DEMO)/.venv/bin/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> $$($(RAY)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/gateway.pth
	@cat $(RAY_PINS) > $(RAY)/requirements.txt
	@$(RAY)/bin/python -m pip --disable-pip-version-check install --quiet --no-compile --requirement $(RAY)/requirements.txt \
		|| { echo "Ray could not be installed: see above; then delete $(RAY) and run make again." >&2; exit 1; }
	@touch $@

.PHONY: test-ray
test-ray: bake $(RAY_READY) ## deploy/ray on a Ray cluster of this machine alone: kills, routing, releases
	$(VENV)/bin/pytest tests/ray

.PHONY: bench
bench: bake ## what the gateway costs beside the bare engine, measured in one run
	$(VENV)/bin/python loadtests/relay.py --project $(DEMO)
	$(VENV)/bin/python loadtests/swap.py --project $(DEMO)
	$(DEMO)/.venv/bin/python loadtests/routing.py

.PHONY: bench-clock
bench-clock: bake ## how true the load generator measures: known delays, 200 streams at once
	$(VENV)/bin/python loadtests/clock.py --project $(DEMO)

.PHONY: bench-bare
bench-bare: bake engines ## real engines through the service, beside their bare servers
	PYTHONPATH=tests $(VENV)/bin/python loadtests/bare.py --project $(DEMO)

# Apart from bench: the peers take a gigabyte, and five rounds half an hour.
.PHONY: bench-peers
bench-peers: bake ## the gateway with everything on beside LiteLLM, vllm-router and sglang-router
	$(VENV)/bin/python loadtests/peers.py --project $(DEMO) --rounds $(ROUNDS)

# Apart from bench: vLLM takes gigabytes.
.PHONY: bench-agreement
bench-agreement: bake ## one workload measured by the load tests and by vllm bench serve: do they agree?
	$(VENV)/bin/python tests/engines/environments/install.py vllm build/engines/vllm
	$(VENV)/bin/python loadtests/agreement.py --project $(DEMO)
