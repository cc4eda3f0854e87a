# make run    the demonstration; the main job with ARGS="--dataset-dir photos --output output" or what main.py takes
# make test   lint, format and tests
# make soak   the same faults and hostile files as in make test, many times over, with figures; takes 25 minutes
# make train  both micro models anew, with PHOTOS=folder for real photos beside the scenes; takes hours
# All create .venv and install the requirements when they are missing or have changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

PHOTOS ?=
WITH_PHOTOS := $(if $(PHOTOS),--photos $(PHOTOS))

.PHONY: run test soak train clean

run: $(VENV)/.run-ready
	$(BIN)/python main.py $(or $(ARGS),--demo)

test: $(VENV)/.test-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q $(ARGS)

soak: $(VENV)/.test-ready
	$(BIN)/python -m pytest -q tests/faults tests/hostile --soak $(ARGS)

# glibc keeps the memory of a step's activations instead of handing it back: a step takes a quarter less time.
KEEP_MEMORY := GLIBC_TUNABLES=glibc.malloc.hugetlb=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=10000000000

train: $(VENV)/.run-ready
	$(KEEP_MEMORY) $(BIN)/python -m training.train_sam2 $(WITH_PHOTOS) --size 128 --minutes 120 --rate 1.5e-3 \
	  --output training/runs/sam2_128.pt
	$(KEEP_MEMORY) $(BIN)/python -m training.train_sam2 $(WITH_PHOTOS) --size 256 --batch 16 --minutes 180 \
	  --init training/runs/sam2_128.pt --output training/runs/sam2.1_hiera_micro.pt
	$(BIN)/python -m training.train_clip $(WITH_PHOTOS) --sam-model training/runs/sam2.1_hiera_micro.pt --minutes 60 \
	  --output training/runs/clip_vit_micro.pt

$(VENV)/.run-ready: requirements.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'sam2vit needs Python 3.10 or newer; name one: make PYTHON=python3.11')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.test-ready: requirements-test.txt requirements-export.txt requirements-ray.txt requirements-urls.txt $(VENV)/.run-ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
