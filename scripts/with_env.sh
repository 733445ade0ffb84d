#!/usr/bin/env bash
# Runs hornbook's Python with the given words: `scripts/with_env.sh [--dev] -m pipeline data configs/tiny.yaml`.
# The environment is, in this order: $HORNBOOK_PYTHON; the active virtual environment if it has the packages;
# else .venv beside this folder, made from constraints.txt when it is missing or older than the pins.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
extra=""
if [ "${1:-}" = "--dev" ]; then extra="[dev]"; shift; fi

fail() { printf 'hornbook: %s\n' "$1" >&2; exit 2; }

has_packages() { "$1" -c 'import sys
assert sys.version_info >= (3, 11)
from importlib.util import find_spec as f
assert all(f(m) for m in sys.argv[1:])' torch lightning datasets datatrove tokenizers wandb omegaconf safetensors ftfy rensa trafilatura warcio py3langid ${extra:+pytest xdist transformers ruff} 2>/dev/null; }

find_python() {
  for candidate in "${PYTHON:-}" python3 python3.11 python3.12 python3.13 python; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
    "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v "$candidate"; return; }
  done
  fail "no Python 3.11 or newer on PATH (python3 is $(python3 --version 2>/dev/null || echo missing)). Install python3.11, or name one: make PYTHON=/path/to/python3.11"
}

make_venv() {
  local python pins stamp
  pins=$(cat "$root/pyproject.toml" "$root/constraints.txt" | cksum | cut -d' ' -f1)
  stamp="$root/.venv/.hornbook$extra-$pins"
  [ -e "$stamp" ] && return
  if [ ! -x "$root/.venv/bin/python" ]; then
    python=$(find_python) || exit 2
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
      fail "$python cannot make virtual environments (module venv or ensurepip is missing). On Debian: apt install python3-venv"
    echo "hornbook: making .venv with $("$python" --version), once" >&2
    "$python" -m venv "$root/.venv" || fail "could not create $root/.venv; is the folder writable?"
  fi
  echo "hornbook: installing the pinned packages of constraints.txt (minutes the first time)" >&2
  # torch first and alone: a wheel that is already on disk is then taken for its exact version
  "$root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check "$(grep '^torch==' "$root/constraints.txt")" &&
    "$root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check -c "$root/constraints.txt" -e "$root$extra" ||
    fail "installing into .venv failed (pip's message is above). Is the package index reachable? Run the same command again to resume"
  touch "$stamp" "$root/.venv/.hornbook-$pins"  # the extra comes on top of the rest
}

if [ -n "${HORNBOOK_PYTHON:-}" ]; then
  python=$HORNBOOK_PYTHON
  [ -x "$(command -v "$python")" ] || fail "HORNBOOK_PYTHON is $python, which is not an executable"
  has_packages "$python" || fail "HORNBOOK_PYTHON is $python, which is older than 3.11 or lacks packages. Fix: $python -m pip install -e '$root$extra'"
elif [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && has_packages python; then
  python=$(command -v python)
else
  make_venv
  python="$root/.venv/bin/python"
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -P "$@"
