# Each target sets up what it needs: the demo what it imports, the tests every extra. PYTHON=python3.12 make demo picks
# the interpreter; TORCH_INDEX=URL takes torch from another index (a CPU build, for instance).
PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
BENCHES := losses metrics tracking startup slides volumes ehr store bags packed
BENCHES_ONE_THREAD := ecg expression
# A test takes one thread: two processes fill two cores, and a file stays in one, whose fixtures it shares.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile
EXTRAS := test,slides,dicom-gpl,wsi-dicom,login,browser,pretrained
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true

.PHONY: demo test slow lint bench long realdata freeze clean

# pip would compile a gigabyte of Python on one core: the demo compiles what it imports as it imports it, the tests
# everything on all cores.
define set_up
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "medfuse needs Python 3.11 or newer, found %d.%d at %s; run: make PYTHON=/path/to/python3.11" % (v[0], v[1], sys.executable))'
	@echo "medfuse: setting up $(VENV), a few minutes; longer where torch has to be fetched"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install -q --no-compile $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX),) "$$(grep '^torch==' constraints.txt)"
	@$(PIP) install -q --no-compile -c constraints.txt -e ".[$(1)]"
	@touch $(VENV)/.installed
endef

$(VENV)/.installed: pyproject.toml constraints.txt
	$(call set_up,slides)

$(VENV)/.tested: pyproject.toml constraints.txt
	$(call set_up,$(EXTRAS))
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib > /dev/null 2>&1 || true
	@touch $@

$(VENV)/.lint: $(VENV)/.tested
	$(PIP) install -q -c constraints.txt -e ".[test,lint]"
	@touch $@

demo: export PYTHONDONTWRITEBYTECODE :=
demo: $(VENV)/.installed
	@echo "medfuse: 1 of 2: training on 198 real breast cancer patients, one to two minutes"
	@$(BIN)/medfuse train --cohort transbig
	@echo
	@echo "medfuse: 2 of 2: a synthetic cohort, from raw files of seven modalities to a report, about two minutes"
	@$(BIN)/medfuse demo

test: $(VENV)/.tested
	$(PYTEST)

slow: $(VENV)/.tested
	$(PYTEST) -m "slow and not realdata and not gpu"

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/mypy

realdata: $(VENV)/.tested
	$(PYTEST) -m "realdata and not gpu"

bench: $(VENV)/.tested
	for script in $(BENCHES); do $(BIN)/python benchmarks/$$script.py || exit 1; done
	for script in $(BENCHES_ONE_THREAD); do OMP_NUM_THREADS=1 $(BIN)/python benchmarks/$$script.py || exit 1; done

# All tests with their full counts (10,000 mutants per loader, 50 kills, 20 fresh databases), 100 million events, and
# what the extractors recover of the synthetic cohort's latents: hours on two cores.
long: $(VENV)/.tested
	MEDFUSE_LONG=1 $(PYTEST) -m "not gpu"
	$(BIN)/python benchmarks/ehr.py --large
	$(BIN)/python benchmarks/synthetic.py

freeze: $(VENV)/.lint
	@{ echo "# The versions that CI runs. pip install -c constraints.txt; regenerate from a green environment with 'make freeze'."; \
	  $(PIP) freeze --exclude-editable | sed 's/^torch==.*/torch==2.13.0/'; } > constraints.txt

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
