#!/usr/bin/env bash
# Run the tests:
#
#   launch/test.sh [--all] [arguments of pytest]
#
# --all also runs the slow tests. Two processes share the files of tests; -n 0 as an argument runs all in one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/environment.sh test
if [ "${1:-}" = --all ]; then
  shift
else
  set -- -m "not slow" "$@"
fi
exec pytest -n 2 --dist loadfile --no-loadscope-reorder "$@" # tests/conftest.py orders the files
