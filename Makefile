# Everything is installed into $(VENV) and nowhere else; `make clean` removes it.

PYTHON ?= python3
VENV   ?= .venv
CONFIG ?= configs/quickstart.yaml
NPROC  ?=
ARGS   ?=

PY := $(VENV)/bin/python
# One rank per GPU that torch can use, else two; the cores are shared out among them.
MACHINE = import torch as t; print(t.cuda.device_count() or 2, t.get_num_threads())
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help train test test-system test-gpu check lint format clean

help:  ## print this list
	@awk -F ':.*## *' '/^[a-z-]+:.*##/ { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

train: $(VENV)/.for-train  ## train CONFIG=file.yaml on NPROC ranks (all GPUs, else 2), with ARGS="key=value …"
	@ranks_and_cores=$$($(PY) -c '$(MACHINE)') || exit; set -- $$ranks_and_cores; \
	ranks="$(or $(NPROC),$$1)" cores=$$2; \
	$(VENV)/bin/distopt check "$(CONFIG)" $(ARGS) --nproc="$$ranks" >/dev/null || exit; \
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$$((cores > ranks ? cores / ranks : 1))} $(PY) -m torch.distributed.run \
	  --standalone --local-addr=127.0.0.1 --nproc_per_node="$$ranks" -m distopt.train "$(CONFIG)" $(ARGS)

test: $(VENV)/.for-tests  ## all tests that need no system package
	@$(PY) -m pytest -m "not system" $(ARGS)

test-system: $(VENV)/.for-tests  ## the tests that need minutes, or system packages (Chromium, Slurm)
	@$(PY) -m pytest -m system $(ARGS)

test-gpu: $(VENV)/.for-tests  ## the tests that need a CUDA device
	@$(PY) -m pytest -m gpu $(ARGS)

check: lint  ## format, lint, types and the fast tests
	@$(PY) -m pytest -q -m "not slow and not system and not gpu" $(ARGS)

lint: $(VENV)/.for-tests  ## format, lint and types
	@$(PY) -m ruff format --check
	@$(PY) -m ruff check
	@$(PY) -m mypy

format: $(VENV)/.for-tests  ## format the code and mend what the linter can
	@$(PY) -m ruff format
	@$(PY) -m ruff check --fix

clean:  ## remove the environment and what the tools left behind; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# The environment, made anew whenever what it is made from has changed.
# Built without isolation, which a borrowed setuptools would break into.
PIP_INSTALL = $(PY) -m pip install -qq -c $(VENV)/constraints.txt
INSTALLED := $(VENV)/.for-train $(VENV)/.for-tests
$(INSTALLED): export SCRIPT = $(BORROW)
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo >&2 \
	  "distopt needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1): make PYTHON=python3.12 …"; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@$(PYTHON) -c "$$SCRIPT" $(VENV)
	@$(PIP_INSTALL) "setuptools>=77"
	@$(PIP_INSTALL) --no-build-isolation -e ".$(if $(findstring tests,$@),[dev])"
	@touch $(VENV)/.for-train $@

# A torch that is there stays. PYTHON's packages are borrowed through a .pth file, since --system-site-packages
# would see past a virtualenv to the interpreter that it was made from; what is borrowed is not pinned.
define BORROW
import re, sys, sysconfig
from importlib.metadata import distributions
from pathlib import Path

def versions(folders):
    return {normal(package.name): package.version for package in distributions(path=folders) if package.name}

def normal(name):
    return re.sub("[-_.]+", "-", name).lower()

venv = Path(sys.argv[1]).resolve()
own = Path(sysconfig.get_path("purelib", "venv", {"base": str(venv)}))
folders = [path for path in sys.path if path.endswith("-packages") and venv not in Path(path).resolve().parents]
borrowed = versions(folders)
if "torch" not in borrowed:
    folders, borrowed = [], {}
(own / "borrowed.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in folders))

torch = versions([str(own)]).get("torch") or borrowed.get("torch")
pins = {normal(line.split("==")[0]): line for line in Path("constraints.txt").read_text().splitlines()}
pins = {name: pin for name, pin in pins.items() if name not in borrowed}
if torch:
    pins["torch"] = f"torch=={torch}"
(venv / "constraints.txt").write_text("\n".join(pins.values()))
what = f"keeping torch {torch}: about a minute" if torch else f"with {pins['torch']}: a few minutes"
print(f"installing into {sys.argv[1]}, {what}", flush=True)
endef
