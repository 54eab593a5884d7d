#!/usr/bin/env bash
# Makes the environment in .venv: `make setup`. The versions are those of requirements/constraints.txt.
#
# - Python is what was asked for (make setup PYTHON=...), else the first of this machine's that fits, else one that uv
#   brings. One that was asked for and does not fit is refused: nobody gets another than the one that was named.
# - A .venv that is there is kept, with all that a user has put into it.
# - Of uv's some 250 lines those stay that say how far it is.
set -euo pipefail
cd "$(dirname "$0")/.."
NEEDED="Python 3.10 to 3.13"
LOG=.venv-setup.log

fail() {
  echo "error: $1" >&2
  exit 2
}

fits() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; }

find_python() {
  local candidate
  for candidate in python3 python3.12 python3.11 python3.10 python3.13 "$HOME"/.pyenv/versions/3.1[0-3].*/bin/python; do
    if fits "$candidate"; then
      echo "$candidate"
      return
    fi
  done
}

# uv of this machine, or one of our own in .venv-uv, which any Python from 3.8 on can make.
find_uv() {
  if command -v uv; then return; fi
  if [ ! -x .venv-uv/bin/uv ]; then
    python3 -m venv .venv-uv >"$LOG" 2>&1 && .venv-uv/bin/pip install --quiet uv >>"$LOG" 2>&1 ||
      fail "$NEEDED is needed, and neither that nor uv, which would bring it, can be had ($(tail -n 1 "$LOG")); install one
of them (https://docs.astral.sh/uv), then run: make setup"
  fi
  echo .venv-uv/bin/uv
}

version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

if [ -n "${PYTHON:-}" ]; then
  fits "$PYTHON" || fail "PYTHON=$PYTHON ($("$PYTHON" --version 2>&1 | tail -n 1)) is not $NEEDED; give another, or leave PYTHON out"
fi
if [ -e .venv ]; then
  fits .venv/bin/python || fail ".venv is there without a $NEEDED that runs; remove it, then run: make setup"
  if [ -n "${PYTHON:-}" ] && [ "$(version "$PYTHON")" != "$(version .venv/bin/python)" ]; then
    fail ".venv is there with Python $(version .venv/bin/python), and PYTHON=$PYTHON is another; remove .venv, or leave PYTHON out"
  fi
  echo "setup 1/2: .venv is there, with $(.venv/bin/python --version)"
else
  PYTHON=${PYTHON:-$(find_python)}
  if [ -n "$PYTHON" ]; then
    echo "setup 1/2: .venv with $("$PYTHON" --version) of this machine"
    "$PYTHON" -m venv .venv >"$LOG" 2>&1 ||
      fail "$PYTHON can make no environment ($(tail -n 1 "$LOG")); install its venv module (python3-venv), remove .venv, then run:
make setup; all it said is in $LOG"
  else
    UV=$(find_uv)
    echo "setup 1/2: .venv with a Python 3.12 that uv brings; this machine has none from 3.10 to 3.13"
    "$UV" venv --seed --python 3.12 .venv >"$LOG" 2>&1 ||
      fail "uv can bring no Python 3.12 ($(tail -n 1 "$LOG")); without a network install $NEEDED, then run: make setup; all it
said is in $LOG"
  fi
fi
if [ ! -x .venv/bin/uv ]; then
  .venv/bin/python -m pip install --quiet uv >"$LOG" 2>&1 ||
    fail "uv cannot be installed ($(tail -n 1 "$LOG")); can the package index be reached? All it said is in $LOG"
fi
echo "setup 2/2: packages, about 6 GB on the disk, 3 GB to fetch the first time; minutes, on a slow line more"
.venv/bin/uv pip install --python .venv/bin/python --constraints requirements/constraints.txt -e '.[dev,convert,eval]' 2>&1 |
  tee "$LOG" | sed -u -E '/^ [+~-] |Downloaded|^Using Python|^ +(Building|Built) |Downloading .*\(([0-9.]+KiB|[0-9]{1,2}(\.[0-9]+)?MiB)\)/d' ||
  fail "the packages cannot be installed; the lines above say why, and all of them are in $LOG"
rm -f "$LOG"
echo "setup: ready in ${SECONDS} s; in every shell: source .venv/bin/activate"
