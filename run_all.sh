#!/usr/bin/env bash
# Runs all notebooks; ./run_all.sh --help explains. Installs into .venv first, once, and again
# whenever the requirements change. TEVQ_PYTHON=/path/to/python uses that one as it is instead.
set -euo pipefail
script="${BASH_SOURCE[0]}"
while [ -L "$script" ]; do  # not every macOS has `readlink -f`
  link="$(readlink "$script")"
  case "$link" in /*) script="$link" ;; *) script="$(dirname "$script")/$link" ;; esac
done
root="$(CDPATH='' cd -- "$(dirname -- "$script")" && pwd -P)"
python="${TEVQ_PYTHON:-$root/.venv/bin/python}"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONSAFEPATH=1  # Python 3.11 and newer import nothing from the current folder

wanted() { echo "$root"; cat "$root/requirements.txt" "$root/pyproject.toml"; }
installed() { [ "$(wanted)" = "$(cat "$root/.venv/installed.txt" 2>/dev/null)" ]; }
has_pip() { "$python" -m pip --version >/dev/null 2>&1; }
install() {
  has_pip || python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' \
    2>/dev/null || {
    echo "run_all.sh: python3 is missing, older than 3.10, or has no venv (Debian, Ubuntu: apt" \
      "install python3-venv); or make .venv with another one: python3.12 -m venv .venv" >&2
    exit 2
  }
  echo "installing into .venv (once; a few minutes) ..." >&2
  exec 9>.venv.lock  # one installation at a time; unlocked when this subshell ends, however it does
  python3 -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)' 2>/dev/null || true
  installed && return
  has_pip || python3 -m venv --clear .venv
  unset PIP_TARGET PIP_PREFIX
  PIP_USER=0 "$python" -m pip install --quiet --no-compile --requirement requirements.txt
  # as pip would, but on all cores; what fails are files of other versions of Python
  "$python" -m compileall -qq -j 0 .venv/lib || true
  wanted >.venv/installed.txt
}
if [ -z "${TEVQ_PYTHON:-}" ] && ! installed; then
  (cd -- "$root"; install)
fi
# not `-m tevq`, with which Python 3.10 imports from the current folder
exec "$python" -c 'import sys; sys.path[:1] = filter(None, sys.path[:1])
from tevq.__main__ import main; sys.exit(main())' "$@"
