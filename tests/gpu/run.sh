#!/usr/bin/env bash
# What a GPU is asked, in one command: tests, speed, and training with the time that is left.
#     tests/gpu/run.sh OUT [SECONDS] [--tiny]        see tests/gpu/__main__.py
set -euo pipefail
out=$(realpath -m "${1:?OUT is missing: tests/gpu/run.sh OUT [SECONDS] [--tiny]}")
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python3}" -u -m tests.gpu "$out" "${@:2}"
