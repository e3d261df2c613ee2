# Each target does its own set-up: `make demo` on a fresh machine needs Python 3.11 or newer, git and make.
.PHONY: demo demo-text test faults soak fuzz lint docs bench

# Training steps of the demo are so small that a second thread would only wait for the first: asleep it makes them twice
# as long, spinning no shorter, and it takes a core from everybody else. Drawing sixteen pictures at a time needs both.
ONE := OMP_NUM_THREADS=1

VENV := .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev
READY_FUZZ := $(VENV)/.ready-fuzz
LABELS := output/demo_labels/metadata.csv

# The newest of these that is there makes the environment when uv does not.
PYTHONS := python3.14 python3.13 python3.12 python3.11 python3

$(READY): pyproject.toml constraints.txt
	@if command -v uv >/dev/null 2>&1; then \
	  test -x $(PYTHON) || uv venv --quiet --python '>=3.11' $(VENV); \
	  uv pip install --quiet --python $(PYTHON) --constraint constraints.txt --editable .; \
	else \
	  test -x $(PYTHON) || for p in $(PYTHONS); do \
	    $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && $$p -m venv $(VENV) && break; \
	  done; \
	  test -x $(PYTHON) || { echo 'Patina needs Python 3.11 or newer; none was found'; exit 1; }; \
	  $(PYTHON) -m pip install --quiet --constraint constraints.txt --editable .; \
	fi
	@touch $@

$(READY_DEV): $(READY)
	@if command -v uv >/dev/null 2>&1; then \
	  uv pip install --quiet --python $(PYTHON) --constraint constraints.txt --editable '.[dev]'; \
	else \
	  $(PYTHON) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'; \
	fi
	@touch $@

$(READY_FUZZ): $(READY)
	@if command -v uv >/dev/null 2>&1; then \
	  uv pip install --quiet --python $(PYTHON) --constraint constraints.txt --editable '.[fuzz]'; \
	else \
	  $(PYTHON) -m pip install --quiet --constraint constraints.txt --editable '.[fuzz]'; \
	fi
	@touch $@

demo: $(READY)  ## label, train, and draw before and after: about five minutes on two cores
	$(ONE) $(PYTHON) tools/auto_label.py --input data/demo/style_train --output $(LABELS) --trigger neonpt
	$(ONE) $(PYTHON) train.py --config configs/demo_style.yaml resume=auto
	$(PYTHON) tools/demo_report.py --lora output/demo_style/demo_style.safetensors --output output/demo/before_after.png

demo-text: $(READY)  ## a language model learns to answer in JSON, asked before and after: under two minutes on two cores
	$(ONE) $(PYTHON) train.py --config configs/demo_text.yaml resume=auto
	$(ONE) $(PYTHON) tools/demo_text_report.py --lora output/demo_text/demo_text

test: $(READY_DEV)  ## all tests: about a quarter of an hour on two cores
	$(ONE) $(PYTHON) -m pytest -n 2 --dist worksteal

faults: $(READY_DEV)  ## 200 kills, and each sort of file operation failing in every way: an hour or so on two cores
	$(ONE) $(PYTHON) -m pytest -n 2 --dist worksteal -m faults tests/faults

soak: $(READY_DEV)  ## 20,000 steps: memory and open files must stay as they were
	$(ONE) $(PYTHON) -m pytest -m soak tests/faults

# libFuzzer stops at an input that takes ten seconds or four gigabytes; what it found lies in output/fuzz.
fuzz: $(READY_FUZZ)  ## every reader of a file under atheris, FUZZ_SECONDS (600) in all, an equal share each
	$(ONE) PYTHONPATH=. $(PYTHON) -m tests.fuzz.hunt

lint: $(READY_DEV)  ## ruff, format, pyright; the size caps are tests/test_house.py
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m pyright --pythonpath $(PYTHON)
	$(PYTHON) -m pytest -q tests/test_house.py

docs: $(READY)  ## write docs/config.md anew from the schema
	$(PYTHON) -m patina.configdocs

bench: $(READY)  ## Patina beside the plain loops, training and captioning: a quarter of an hour or so on a large GPU, seven minutes without one
	$(PYTHON) tools/bench.py --output output/bench/bench.json
	@if nvidia-smi -L >/dev/null 2>&1; then $(PYTHON) tools/bench_text.py --output output/bench/text.json; \
	else echo 'text mode is left out: it needs a GPU'; fi
	$(PYTHON) tools/bench_captions.py --backend coca --pictures 16 --output output/bench/captions.json
