#!/usr/bin/env bash
# Runs the study; ./run_all.sh --help explains. Installs into .venv first, once, and again whenever
# the requirements change. TEVQ_PYTHON=/path/to/python uses that one as it is instead.
set -euo pipefail
root="$(cd "$(dirname "$0")" && pwd)"
python="${TEVQ_PYTHON:-$root/.venv/bin/python}"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

wanted() { echo "$root"; cat "$root/requirements.txt" "$root/pyproject.toml"; }
if [ -z "${TEVQ_PYTHON:-}" ] && ! wanted | cmp -s - "$root/.venv/installed.txt"; then
  if ! "$python" -m pip --version >/dev/null 2>&1; then
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
      { echo "python3 is older than 3.10; make .venv with a newer one: python3.12 -m venv .venv" >&2; exit 2; }
    python3 -m venv --clear "$root/.venv"
  fi
  echo "installing into .venv (once; a few minutes) ..." >&2
  (cd "$root" && "$python" -m pip install --quiet --requirement requirements.txt)
  wanted >"$root/.venv/installed.txt"
fi
exec "$python" -m tevq "$@"
