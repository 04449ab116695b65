# Every target does its own set-up: a fresh clone needs Python 3.11 to 3.13 and `make`, nothing else.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
MODEL  ?= smollm2
# Dynamo has a place of its own: its runtime wants an older pydantic than the one that everything else is tested with.
FLEET  ?= .venv-dynamo
# What lists the packages of an environment is not one of them.
SBOM   ?= .venv-sbom

.PHONY: help chat serve dynamo test test-fleet soak lint book book-html notebooks colab sbom lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# Two stamps: what running the engine needs, and what working on it and on the book needs besides.
# requirements.txt serves as the list of pins for both.
$(VENV)/run.stamp: pyproject.toml requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "miniserve needs Python 3.11 to 3.13, and $(PYTHON) is %d.%d: try make PYTHON=python3.12" % sys.version_info[:2])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing miniserve and what it runs on into $(VENV): a minute, or more where torch must be downloaded."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.txt --editable '.[serve,bench]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	@echo "Installing what the tests and the book need into $(VENV): another minute or two."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt --editable .
	@touch $@

$(FLEET)/run.stamp: pyproject.toml requirements.txt constraints/dynamo.txt
	@test -x $(FLEET)/bin/python || $(PYTHON) -m venv $(FLEET)
	@echo "Installing miniserve and NVIDIA Dynamo into $(FLEET): some minutes, 0.6 GB without torch."
	@grep -v '^pydantic' requirements.txt > $(FLEET)/pins.txt
	@$(FLEET)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(FLEET)/pins.txt \
		--constraint constraints/dynamo.txt --editable '.[dynamo]' pytest pytest-timeout hypothesis openai
	@$(FLEET)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints/dynamo.txt --no-deps ai-dynamo
	@touch $@

chat: $(VENV)/run.stamp  ## talk to a real model in the terminal
	@$(BIN)/miniserve chat --model $(MODEL)

serve: $(VENV)/run.stamp  ## serve a real model as the OpenAI API does, on port 8000
	@$(BIN)/miniserve serve $(MODEL)

dynamo: $(FLEET)/run.stamp  ## NVIDIA Dynamo on this machine, port 8000: two workers for prompts, two behind them
	@$(FLEET)/bin/miniserve models pull $(MODEL)
	@$(FLEET)/bin/python -m miniserve.dynamo.local --model $(MODEL) --prefill 2 --decode 2

lint: $(VENV)/dev.stamp  ## style, types, floors, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

test: lint  ## everything CI runs
	$(BIN)/miniserve models pull $(MODEL)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-fleet: $(FLEET)/run.stamp  ## workers killed and silenced under Dynamo: minutes, not part of `test`
	$(FLEET)/bin/miniserve models pull $(MODEL)
	$(FLEET)/bin/python -m pytest --record results/dynamo.json \
		tests/dynamo/test_planned.py tests/dynamo/test_deployment.py tests/dynamo/test_faults.py tests/dynamo/test_routing.py

soak: $(VENV)/dev.stamp  ## a server under load for 20 minutes with everything done to it: kills, leavers, rollouts, flipped bits
	$(BIN)/miniserve models pull $(MODEL)
	$(BIN)/python benchmarks/serve_soak.py --model $(MODEL)

book-html: $(VENV)/dev.stamp  ## build the web book, warnings as errors
	$(BIN)/miniserve models pull $(MODEL)
	$(BIN)/jupyter-book build . --all -W -n --keep-going

book: book-html  ## build the web book and serve it on this machine
	@$(BIN)/python book/_tools/serve.py

notebooks: $(VENV)/dev.stamp  ## execute the chapters and write their notebooks
	$(BIN)/miniserve models pull $(MODEL)
	$(BIN)/python book/_tools/notebooks.py

colab: $(VENV)/dev.stamp  ## each notebook as Colab runs it, in fresh environments of PYTHON that have torch already: half an hour
	$(BIN)/miniserve models pull $(MODEL)
	$(BIN)/python book/_tools/colab.py --python $(PYTHON)

sbom: $(VENV)/dev.stamp  ## artifacts/sbom.cdx.json: every package installed, with licences and what needs what (CycloneDX)
	@test -x $(SBOM)/bin/cyclonedx-py || { $(PYTHON) -m venv $(SBOM) && \
		$(SBOM)/bin/python -m pip install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0; }
	@mkdir -p artifacts
	@$(SBOM)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
		--output-file artifacts/sbom.cdx.json $(VENV)

lock: $(VENV)/run.stamp  ## artifacts/requirements.lock: the pins, with the hash of each file for this Python and platform
	@mkdir -p artifacts
	@$(BIN)/python -m pip install --dry-run --ignore-installed --quiet --disable-pip-version-check \
		--report artifacts/pip_report.json --requirement requirements.txt
	@$(BIN)/python deploy/lock.py artifacts/pip_report.json > artifacts/requirements.lock

clean:  ## remove the environment and everything built
	rm -rf $(VENV) $(FLEET) $(SBOM) _build artifacts .mypy_cache .ruff_cache
