# Needs Python 3.11 (PYTHON=...), make and a package index; everything else is installed in .venv*.
PYTHON ?= python3
# Processes of pytest in `make test`, each with one thread: more threads than cores wait for each
# other.
WORKERS ?= 2

BIN := .venv/bin
STAMP := installed.stamp
DEFAULT := not slow and not lite and not paddle26 and not browser and not two_versions

.PHONY: help docs demo demo-text demo-deploy demo-images test test-slow test-lite test-2.6 \
	test-slow-2.6 test-3.3 test-slow-3.3 test-versions test-browser lint bench bench-2.6 \
	env env-2.6 env-3.3 lite-env clean

help:
	@echo "make demo | demo-text | demo-deploy | demo-images | test | lint | bench | lite-env | clean"
	@echo "(README.md and demo/README.md say what each does)"

demo: env
	OMP_NUM_THREADS=1 GLOG_minloglevel=2 PYTHONWARNINGS=ignore::UserWarning \
		$(BIN)/python demo/digits.py

# The first run trains the model, in some minutes, and leaves it in .test-cache.
demo-text: env
	OMP_NUM_THREADS=1 GLOG_minloglevel=2 PYTHONWARNINGS=ignore::UserWarning \
		$(BIN)/python demo/transformer.py

demo-deploy: env
	OMP_NUM_THREADS=1 GLOG_minloglevel=2 PYTHONWARNINGS=ignore::UserWarning \
		$(BIN)/python demo/deploy.py

# Else the allocator gives each large tensor back to the system at once, which clears it anew.
KEEP_MEMORY := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=1099511627776
# Images of one's own: make demo-images PHOTOS=folder, with a folder in it for each class.
PHOTOS ?=
demo-images: env
	$(KEEP_MEMORY) OMP_NUM_THREADS=1 GLOG_minloglevel=2 PYTHONWARNINGS=ignore::UserWarning \
		$(BIN)/python demo/images.py $(PHOTOS)

# The suite for every change. What needs minutes, Python 3.7 or another Paddle is in .ci/run.
test: env
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) -m "$(DEFAULT)"

# The first of these trains the models and leaves them in .test-cache for the others. One thread
# each: with more, sums come in another order, which moves values on rounding borders.
# (The sweep of converted models runs on the newest Paddle, and does there what test_models does
# elsewhere. What algorithms do for perplexity is the same arithmetic on each Paddle.)
SLOW := -m pytest -q -n $(WORKERS) --dist loadgroup
test-slow: env
	OMP_NUM_THREADS=1 $(BIN)/python $(SLOW) -m "slow and not lite" \
		--ignore=tests/models/test_pir_models.py

test-lite: env lite-env
	OMP_NUM_THREADS=1 PADDLEQ_LITE_PYTHON=$(abspath .venv-lite/bin/python) \
		$(BIN)/python -m pytest -q -m lite

test-slow-2.6: env-2.6
	OMP_NUM_THREADS=1 .venv-2.6/bin/python $(SLOW) -m "slow and not lite and not needs_pir" \
		--ignore=tests/algorithms/test_text.py

# The default suite, and what compares with the classes that ship in Paddle 2.6.2.
test-2.6: env-2.6
	OMP_NUM_THREADS=1 .venv-2.6/bin/python -m pytest -q -n $(WORKERS) \
		-m "not slow and not lite and not browser and not needs_pir"

test-3.3: env-3.3
	OMP_NUM_THREADS=1 .venv-3.3/bin/python -m pytest -q -n $(WORKERS) -m "$(DEFAULT)"

test-slow-3.3: env-3.3
	OMP_NUM_THREADS=1 .venv-3.3/bin/python $(SLOW) -m "slow and not lite" \
		--ignore=tests/algorithms/test_text.py --ignore=tests/models/test_models.py

# Files of two Paddle versions side by side.
test-versions: env-2.6 env-3.3
	OMP_NUM_THREADS=1 PADDLEQ_26_PYTHON=$(abspath .venv-2.6/bin/python) \
		.venv-3.3/bin/python -m pytest -q -m two_versions

# Needs Chromium and ChromeDriver (Debian: chromium, chromium-driver).
test-browser: env env-3.3
	for python in $(BIN) .venv-3.3/bin; do \
		OMP_NUM_THREADS=1 $$python/python -m pytest -q -m browser || exit 1; done

# The site of docs/, in out/site. Warnings are errors: a page, a link or an anchor that is missing.
docs: .venv-docs/$(STAMP)
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build -q --strict

.venv-docs/$(STAMP): requirements-docs.txt
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	echo '*' > $(@D)/.gitignore
	$(@D)/bin/python -m pip install -q -r requirements-docs.txt
	touch $@

lint: env
	$(BIN)/ruff check .

BENCHMARKS := bench_qat bench_fake_quantize bench_calibration bench_deploy \
	bench_predictor bench_memory_llm bench_gptq

bench: env
	for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py || exit 1; done

bench-2.6: env-2.6
	for name in $(BENCHMARKS); do .venv-2.6/bin/python benchmarks/$$name.py || exit 1; done

env: .venv/$(STAMP)
env-2.6: .venv-2.6/$(STAMP)
env-3.3: .venv-3.3/$(STAMP)

.venv/$(STAMP): requirements.txt
.venv-2.6/$(STAMP): requirements-2.6.txt
.venv-3.3/$(STAMP): requirements-3.3.txt

# The requirements file is the prerequisite that only this one environment has.
.venv/$(STAMP) .venv-2.6/$(STAMP) .venv-3.3/$(STAMP): requirements-test.txt setup.py
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	echo '*' > $(@D)/.gitignore
	$(@D)/bin/python -m pip install -q -r $(filter-out requirements-test.txt setup.py,$^)
	$(@D)/bin/python -m pip install -q --no-deps --no-build-isolation -e .
	touch $@

# Paddle-Lite has no wheel for a Python that is still maintained.
lite-env: .venv-lite/$(STAMP)

.venv-lite/$(STAMP):
	@if python3.7 -c '' 2>/dev/null; then python3.7 -m venv --clear $(@D); \
	elif PYENV_VERSION=3.7.16 python3.7 -c '' 2>/dev/null; then \
		PYENV_VERSION=3.7.16 python3.7 -m venv --clear $(@D); \
	else \
		echo "lite-env: no python3.7 here that runs, neither on PATH nor as pyenv's 3.7.16;" \
			"paddlelite 2.12 has wheels for 3.6 and 3.7 only. Install one, e.g.:" \
			"pyenv install 3.7.16" >&2; exit 1; \
	fi
	echo '*' > $(@D)/.gitignore
	$(@D)/bin/python -m pip install -q numpy==1.21.6 paddlelite==2.12
	touch $@

clean:
	rm -rf .venv .venv-2.6 .venv-3.3 .venv-docs .venv-lite out build dist paddleq.egg-info .pytest_cache \
		.ruff_cache .hypothesis .test-cache
	find paddleq tests demo benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
