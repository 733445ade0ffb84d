#!/usr/bin/env bash
# One command, under 10 minutes, for a machine with a CUDA card and torch, lightning, tokenizers, safetensors and numpy:
#   scripts/gpu_check.sh OUT [--cpu] [--seconds 540]
# writes OUT/gpu_check.json (card, versions, commit, every figure) and prints a table last. --cpu tries it at tiny sizes.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" scripts/gpu_check.py "$@"
