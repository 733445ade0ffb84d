#!/usr/bin/env bash
# One command, under 540 seconds, for a machine with a CUDA card (what it needs: tests/gpu_check/check.py):
#   scripts/gpu_check.sh OUT [--cpu] [--seconds 540] [--parts phi2 pretrain]
# writes OUT/gpu_check.json and OUT/table.txt after every part, the most informative first. --cpu tries it at tiny sizes.
set -euo pipefail
out=$(realpath -m "${1:?usage: scripts/gpu_check.sh OUT [--cpu] [--seconds 540] [--parts PART...]}")
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m tests.gpu_check.check "$out" "${@:2}"
