# The staged pipeline. Every target makes its own environment where there is none (scripts/with_env.sh).
#   make data && make init && make pretrain                      configs/tiny.yaml, no GPU
#   make data init pretrain CONFIG=configs/phi2.yaml ARGS="budget.max_gpu_hours=24"
CONFIG ?= configs/tiny.yaml
ARGS ?=
STUDY ?= configs/studies/combine.yaml
HORNBOOK = scripts/with_env.sh -m pipeline
DEV = scripts/with_env.sh --dev
PYTEST = $(DEV) -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: help data init pretrain plan sample report evaluate export quantize finetune study submit test test-fast check format env
.NOTPARALLEL:

help:
	@echo 'make data init pretrain [CONFIG=configs/tiny.yaml] [ARGS="key=value --dry-run"]   the pipeline'
	@echo 'make plan sample report                                                          what it needs on a card; text, page of a run'
	@echo 'make submit [CONFIG=...] [ARGS="--partition gpu --time 12:00:00"]                      the pipeline as a chain of Slurm jobs'
	@echo 'make evaluate export quantize finetune                                           what comes after pretraining'
	@echo 'make study [STUDY=configs/studies/combine.yaml]                                          members under equal budgets'
	@echo 'make test | test-fast | check | format                                           for who changes the code'

data init pretrain plan sample report evaluate export quantize finetune submit:
	@$(HORNBOOK) $@ $(CONFIG) $(ARGS)

study:
	@$(HORNBOOK) study $(STUDY) $(ARGS)

test:
	@$(PYTEST) $(ARGS)

test-fast:
	@$(PYTEST) -m "not slow" $(ARGS)

check:
	@$(DEV) -m ruff check .
	@$(DEV) -m ruff format --check .
	@$(DEV) -m pyright

format:
	@$(DEV) -m ruff check --fix .
	@$(DEV) -m ruff format .

env:
	@$(DEV) -c 'import sys; print(sys.executable)'
