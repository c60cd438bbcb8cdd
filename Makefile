# Two commands from a fresh clone, on a machine with Python and git and nothing else set up:
#   make train   installs and runs the main job        make test   installs and passes the tests
# ARGS go to the run: make train ARGS="-p subset 50 -p epochs 20"
PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: train test lab prepare clean
train: $(STAMP)
	$(BIN)/papermill nbs/train.ipynb $(ARGS)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal tests

lab: $(STAMP)
	$(BIN)/jupyter lab

# what a change needs before it is committed
prepare: $(STAMP)
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test

$(STAMP): settings.ini setup.py pyproject.toml
	@if command -v uv >/dev/null 2>&1; then \
	  { [ -x $(BIN)/python ] || uv venv --python $(PYTHON) $(VENV); } && uv pip install --python $(BIN)/python -e '.[dev]'; \
	else \
	  { [ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV); } && $(BIN)/python -m pip install -e '.[dev]'; \
	fi
	@touch $(STAMP)

clean:
	rm -rf $(VENV) runs _docs

# what the accelerator at hand is worth, in eight minutes; installs nothing
# make gpu-check ARGS="--minutes 4 --data_dir my-corpus"
.PHONY: gpu-check
gpu-check:
	@$(firstword $(wildcard $(BIN)/python) $(PYTHON)) -c "from asc.cli import main; main()" gpu-check $(ARGS)

# README.md is nbs/index.ipynb
.PHONY: readme
readme: $(STAMP)
	$(BIN)/jupyter nbconvert --to markdown --log-level ERROR --output-dir . --output README.md nbs/index.ipynb

# the notebooks and tutorials as HTML, made and read offline
.PHONY: docs
docs: $(STAMP)
	rm -rf _docs
	$(BIN)/sphinx-build --quiet --jobs auto -c nbs/site nbs _docs
	@echo "open _docs/index.html"
