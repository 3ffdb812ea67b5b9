#!/usr/bin/env bash
# Runs the study; ./run_all.sh --help explains. Installs into .venv first, once, and again whenever
# the requirements change. TEVQ_PYTHON=/path/to/python uses that one as it is instead.
set -euo pipefail
root="$(cd "$(dirname "$0")" && pwd)"
python="${TEVQ_PYTHON:-$root/.venv/bin/python}"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

wanted() { echo "$root"; cat "$root/requirements.txt" "$root/pyproject.toml"; }
if [ -z "${TEVQ_PYTHON:-}" ] && ! wanted | cmp -s - "$root/.venv/installed.txt"; then
  echo "installing into .venv (once; a few minutes) ..." >&2
  "$python" -m pip --version >/dev/null 2>&1 || python3 -m venv --clear "$root/.venv"
  (cd "$root" && "$python" -m pip install --quiet --requirement requirements.txt)
  wanted >"$root/.venv/installed.txt"
fi
exec "$python" -m tevq "$@"
