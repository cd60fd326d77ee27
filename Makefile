# make help shows what there is. Every target first brings .venv to what it needs; when it is there
# already, that takes a fraction of a second and no network.
ROBOT ?= widowx
POLICY ?=
ARGS ?=
TORCH ?= auto
export TORCH

SHELL := /bin/sh
SETUP := sh tools/setup.sh
PYTHON_RUN := .venv/bin/python
POLICY_ARG := $(if $(POLICY),--policy $(POLICY))
# EGL renders without a screen; one thread per library leaves the cores to the processes.
export MUJOCO_GL ?= egl

.DEFAULT_GOAL := help
.PHONY: help venv demo doctor test lint types benchmark clean

help:
	@echo 'make demo        a simulated robot follows three instructions; pictures, video and bag in out/demo'
	@echo '                 ROBOT=widowx|franka   POLICY=scripted needs no torch   ARGS="..." goes to spear demo'
	@echo 'make test        linter, type checker and the whole test suite'
	@echo 'make doctor      what works on this machine, what is missing, and the mend'
	@echo 'make venv        only the environment: .venv with everything that the tests need'
	@echo 'make lint        ruff (linter and format) and mypy'
	@echo 'make benchmark   the scripts of benchmarks/, one JSON line each'
	@echo 'make clean       removes build and run outputs; .venv stays'
	@echo 'TORCH=auto|cpu|cu126|cu128|cu130|none chooses the torch to install (auto: CPU without an NVIDIA driver)'
	@echo 'PYTHON=/path     chooses the interpreter (3.11, 3.12 or 3.13)'

venv:
	@$(SETUP) --needs test

demo:
	@$(SETUP) --needs demo --policy '$(POLICY)'
	@.venv/bin/spear demo --robot $(ROBOT) $(POLICY_ARG) $(ARGS)

doctor:
	@$(SETUP) --needs robot
	@.venv/bin/spear doctor $(ARGS)

test: lint
	@$(PYTHON_RUN) -m pytest $(ARGS)

lint: venv
	@$(PYTHON_RUN) -m ruff check .
	@$(PYTHON_RUN) -m ruff format --check .
	@$(PYTHON_RUN) -m mypy spear_ros/core spear_ros/robots spear_ros/runtime

benchmark: venv
	@for script in benchmarks/*.py; do \
		case $$script in benchmarks/_*) continue;; esac; \
		echo "$$script"; $(PYTHON_RUN) $$script $(ARGS) || exit 1; \
	done

clean:
	@rm -rf build install log out dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
