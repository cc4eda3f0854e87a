# make run    the demonstration; the main job with ARGS="--dataset-dir photos --output output" or what main.py takes
# make test   lint, format and tests
# make train  both micro models anew, with PHOTOS=folder for real photos beside the scenes; takes hours
# Both create .venv and install the requirements when they are missing or have changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

PHOTOS ?=
WITH_PHOTOS := $(if $(PHOTOS),--photos $(PHOTOS))

.PHONY: run test train clean

run: $(VENV)/.run-ready
	$(BIN)/python main.py $(or $(ARGS),--demo)

test: $(VENV)/.test-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q $(ARGS)

train: $(VENV)/.run-ready
	$(BIN)/python -m training.train_sam2 $(WITH_PHOTOS) --size 128 --minutes 120 --output training/runs/sam2_128.pt
	$(BIN)/python -m training.train_sam2 $(WITH_PHOTOS) --size 256 --minutes 240 --rate 4e-4 \
	  --init training/runs/sam2_128.pt --output training/runs/sam2.1_hiera_micro.pt
	$(BIN)/python -m training.train_clip $(WITH_PHOTOS) --minutes 60 --output training/runs/clip_vit_micro.pt

$(VENV)/.run-ready: requirements.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'sam2vit needs Python 3.10 or newer; name one: make PYTHON=python3.11')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.test-ready: requirements-test.txt $(VENV)/.run-ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
