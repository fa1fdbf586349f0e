#!/usr/bin/env bash
# Measure the cost of the watch over the ranks and of --trace: runs in turns, without and with them.
#
#   docs/overhead.sh [ROUNDS]     in an activated environment; 9 rounds by default
set -euo pipefail
cd "$(dirname "$0")/.."
runs=$(mktemp -d)
trap 'rm -rf "$runs"' EXIT
for round in $(seq "${1:-9}"); do
  for flags in "--stall-timeout 0" "--stall-timeout 600" "--trace"; do
    # shellcheck disable=SC2086 # words
    mpirun -n 2 python -m dpcnn.train --recipe fast --epochs 1 --no-curves $flags --out "$runs/$flags/$round" >/dev/null </dev/null
  done
done
python - "$runs" <<'END'
import json, sys
from pathlib import Path
from statistics import median

def seconds(run):
    events = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return next(event["seconds"] for event in events if event["event"] == "epoch")

base, *others = ([seconds(run) for run in sorted(kind.iterdir())] for kind in sorted(Path(sys.argv[1]).iterdir()))
for name, times in zip(("watched", "watched and traced"), others, strict=True):
    fastest, typical = min(times) / min(base) - 1, median(times) / median(base) - 1
    print(f"{name}: {fastest:+.1%} in the fastest of {len(base)} runs, {typical:+.1%} in the median")
END
