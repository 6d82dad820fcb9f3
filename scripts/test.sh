#!/usr/bin/env bash
# Run all checks: ruff and pytest. The first run creates .venv.
#   bash scripts/test.sh [pytest options]
set -euo pipefail
cd "$(dirname "$0")/.."

if [ ! -x .venv/bin/python ]; then
    "${PYTHON:-python3}" -m venv .venv
fi
# DALI exists only for Linux, and pip skips it elsewhere. Its tests use its CPU backend.
# If nothing changed, installing again takes a second. It is needed when pyproject.toml changed.
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,dali]'

.venv/bin/ruff check .
.venv/bin/ruff format --check .
exec .venv/bin/python -m pytest "$@"
