#!/usr/bin/env bash
# The project's checks: makes .venv on first use, then runs ruff and pytest.
#   bash scripts/test.sh [pytest options]
set -euo pipefail
cd "$(dirname "$0")/.."

if [ ! -x .venv/bin/python ]; then
    "${PYTHON:-python3}" -m venv .venv
fi
# DALI is for Linux alone, and left out elsewhere; its tests run on its CPU backend.
# Installing again takes a second when nothing changed, and picks up a changed pyproject.toml.
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,dali]'

.venv/bin/ruff check .
.venv/bin/ruff format --check .
exec .venv/bin/python -m pytest "$@"
