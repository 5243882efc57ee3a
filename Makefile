# `make help` lists the targets.

PYTHON ?= python3
TORCH ?= torch==2.13.0
# Without a GPU 2 GB can be saved: make install TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
DATA ?= ../shared/data/speech
# books, of which some are held out; and where they are read aloud
TEXT ?= ../shared/data/text
SYNTHETIC := runs/synthetic
# MIDI performances and a recorded piano; what is played from them
PIANO ?= ../shared/data/piano
CORPUS := runs/piano_corpus
OF_PIANO := --data $(CORPUS) --runs runs/piano --model weights/piano
# that train together: GPUs, or cores of a CPU
PROCESSES ?= 1
# that test together: cores
WORKERS ?= 2
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help install demo test test-fast test-torch sanitize lint format lock eval eval-speech eval-piano eval-detector bench weights-speech weights-piano clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | awk -F'\t' '{printf "  make %-16s %s\n", $$1, $$2}'

install: .venv/installed  ## the program and what tests need, into .venv

.venv/installed: pyproject.toml constraints.txt hatch_build.py $(wildcard audiolm_cli/native/*.[ch] audiolm_cli/native/build.py)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed: make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
	  || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update && apt-get install -y python3-venv; } \
	  || { echo "Python's venv module is missing: install it, for instance with: apt-get install python3-venv"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@# torch first and by version: a bare requirement may bring another build together with gigabytes of CUDA
	$(PIP) install $(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -c constraints.txt
	$(PIP) install -e '.[dev,plot,ray,serve,train]' -c constraints.txt
	touch $@

.venv/eval: .venv/installed
	$(PIP) install -e '.[eval,teach]' -c constraints.txt
	@# without what these ask for and the measures do not use
	$(PIP) install --no-deps resemblyzer basic-pitch -c constraints.txt
	touch $@

demo: .venv/installed  ## continue a real recording: examples/prompt.flac becomes demo.wav
	$(BIN)/audiolm continue examples/prompt.flac -o demo.wav --seed 1 -f
	@echo "Listen to demo.wav: 3.5 seconds of the recording, then 7 new ones."

# as on a lesser processor (processor.py has their names): AUDIOLM_PROCESSOR=avx2 ATEN_CPU_CAPABILITY=avx2 make test
# in processes of a thread each, a file in one of them, in the order of conftest.py: slow ones first
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder
test: .venv/installed  ## all tests that need no network, no GPU and no data
	$(PYTEST)

sanitize: .venv/installed  ## the native kernel's tests under the address and undefined behaviour sanitizers
	LD_PRELOAD=$$($${CC:-cc} -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 AUDIOLM_SANITIZE=1 \
	  $(BIN)/python -m pytest -q tests/native tests/mimi/test_int8.py

test-fast: .venv/installed  ## the same without the slow ones
	$(PYTEST) -m 'not slow'

test-torch:  ## the oldest and the newest torch that pyproject.toml promises; downloads up to 6 GB
	PYTHON=$(PYTHON) TORCH_INDEX=$(TORCH_INDEX) .ci/torch-versions

lint: .venv/installed  ## format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/installed  ## put the code and the help texts in docs/ into the form that lint and test want
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python -m tests.program.test_docs

# uv must see a CPU build of torch, which needs no CUDA packages: TORCH_INDEX=https://download.pytorch.org/whl/cpu
lock:  ## requirements.lock: the hashes of what `make install` installs beside torch; needs uv
	uv pip compile pyproject.toml $(addprefix --extra ,dev plot ray serve train) --constraints constraints.txt \
	  --generate-hashes --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	  $(if $(TORCH_INDEX),--index $(TORCH_INDEX) --index-strategy unsafe-best-match) \
	  --no-emit-package torch --no-annotate --custom-compile-command "make lock" --output-file requirements.lock

eval: eval-speech eval-piano  ## the figures on quality, from the validation splits of DATA and PIANO

eval-speech: .venv/eval
	$(BIN)/python -m audiolm_cli.training.evaluation.evaluate --data $(DATA) $(if $(wildcard $(TEXT)),--text $(TEXT)) \
	  $(if $(wildcard $(SYNTHETIC)/manifest.tsv),--synthetic $(SYNTHETIC))

eval-piano: .venv/eval $(CORPUS)/manifest.tsv
	$(BIN)/python -m audiolm_cli.training.evaluation.evaluate $(OF_PIANO)

# needs Debian's fluidsynth and fluid-soundfont-gm
$(CORPUS)/manifest.tsv: .venv/installed
	$(BIN)/python -m audiolm_cli.training.corpora.piano --data $(PIANO) --out $(CORPUS) --hours 41 --passes 3 --processes $(PROCESSES)

# makes outputs, and trains the classifier anew and others to compare it with, into runs/
eval-detector: .venv/installed $(CORPUS)/manifest.tsv  ## false alarms of the classifiers on corpora that they never heard
	$(BIN)/python -m audiolm_cli.training.parts.detector_data --data $(DATA)
	$(BIN)/python -m audiolm_cli.training.parts.detector --data $(DATA) --report
	$(BIN)/python -m audiolm_cli.training.parts.detector_data $(OF_PIANO)
	$(BIN)/python -m audiolm_cli.training.parts.detector $(OF_PIANO) --report --recipe piano

bench: .venv/installed  ## the figures on speed
	$(BIN)/python benchmarks/bench.py
	$(BIN)/python benchmarks/decode.py --split

weights-speech: .venv/installed  ## train weights/speech from the recordings in DATA and the books in TEXT
	$(PIP) install -e '.[speak,teach]' -c constraints.txt
	$(BIN)/python -m audiolm_cli.training.run speech --data $(DATA) --text $(TEXT) --processes $(PROCESSES)

weights-piano: $(CORPUS)/manifest.tsv  ## train weights/piano, its codec from weights/speech, on what is played from PIANO
	$(BIN)/python -m audiolm_cli.training.run piano --data $(CORPUS) --midi $(PIANO) --processes $(PROCESSES)

clean:  ## remove what was built, but not weights and training runs
	rm -rf .venv build dist demo.wav audiolm_cli/native/*.so .pytest_cache .hypothesis .mypy_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
