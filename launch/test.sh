#!/usr/bin/env bash
# Run the tests: launch/test.sh [--all] [arguments of pytest]; --all: the slow tests, too
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/environment.sh test
if [ "${1:-}" = --all ]; then
  shift
else
  set -- -m "not slow" "$@"
fi
exec pytest "$@"
