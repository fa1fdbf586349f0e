#!/usr/bin/env bash
# Run the tests: launch/test.sh [arguments of pytest]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/environment.sh plot,pictures,export,tensorboard,test
exec pytest "$@"
