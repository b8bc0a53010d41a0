# The commands of Millrace's developers and newcomers. `make demo` and `make test` share .venv.
#
#   make demo            Tiny Shakespeare from text to a trained model, in a few minutes on 2 cores
#   make test            what CI runs
#   make check           the quick part of it
#   make soak            long campaigns of kills
#   make cluster-test    real engines and services on this machine; what is missing is skipped, saying so
#
# PyPI's torch for Linux carries CUDA (5 GB). For a smaller CPU build name its index:
#   make demo TORCH_INDEX=URL_OF_A_CPU_INDEX

PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
# Two tests at a time, those of a file behind one another.
PYTEST := $(BIN)/python -m pytest
WORKERS := -n 2 --no-loadscope-reorder
INDEX := $(if $(TORCH_INDEX),--index $(TORCH_INDEX) --index-strategy unsafe-best-match)

.PHONY: demo test check lint soak cluster-test clean
.DELETE_ON_ERROR:

# Some machines forbid it; without it every process compiles torch and Beam anew, 2 s each time.
unexport PYTHONDONTWRITEBYTECODE

# Two ranks on the CPU, one core each. The three commands are those that one types later.
demo: export DS_ACCELERATOR = cpu
demo: export OMP_NUM_THREADS = 1
demo: export PATH := $(CURDIR)/$(BIN):$(PATH)
demo: $(VENV)/.installed
	python -m pipeline configs/pipeline/tiny_shakespeare.yaml
	deepspeed --num_gpus 2 --module training configs/training/tiny_shakespeare.yaml
	python -m training.generate runs/tiny_shakespeare --prompt "ROMEO:" --num-tokens 300
	@echo
	@echo "checkpoints:        runs/tiny_shakespeare/checkpoints/"
	@echo "TensorBoard events: runs/tiny_shakespeare/"
	@echo "to watch them:      $(BIN)/tensorboard --logdir runs"

test: lint
	$(PYTEST) $(WORKERS) -m "not soak and not cluster"

check: lint
	$(PYTEST) $(WORKERS) -m "not slow and not soak and not cluster"

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

soak: $(VENV)/.installed
	$(PYTEST) -m soak

cluster-test: $(VENV)/.installed
	$(PYTEST) -m cluster

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Millrace needs Python 3.11 or newer, $(PYTHON) is %s; name another as PYTHON=..." % sys.version.split()[0])'
	@echo "installing into $(VENV): with PyPI's torch 5 GB, a minute or less on a fast line"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt uv
	VIRTUAL_ENV="$(CURDIR)/$(VENV)" $(BIN)/uv pip install -q $(INDEX) -c constraints.txt -e '.[pipeline,training,dev]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
