#!/usr/bin/env bash
# Measure the speed of a training from files that the page cache does not contain: runs in turns, with and without them.
#
#   docs/cold.sh [ROUNDS]     in an activated environment; 5 rounds by default; needs 1 GB in TMPDIR
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python - "$work/images.npz" <<'END'
import sys
import numpy as np

rng = np.random.default_rng(0)
arrays = {f"x_{split}": rng.integers(0, 256, (n, 64, 64, 3), np.uint8) for split, n in (("train", 40_000), ("test", 10))}
arrays |= {f"y_{split}": rng.integers(0, 10, n) for split, n in (("train", 40_000), ("test", 10))}
np.savez(sys.argv[1], **arrays)
END
python -m dpcnn.data prepare "$work/images.npz" --out "$work/set" --contiguous
rm "$work/images.npz"
sync
train() {
  mpirun -n 2 python -m dpcnn.train --recipe fast --data "$work/set" --batch 128 --microbatch 64 --epochs 1 --max-steps 120 \
    --no-curves --out "$work/$1" >/dev/null </dev/null
}
train first  # it verifies the shards, so that the others read nothing before the first step
for round in $(seq "${1:-5}"); do
  cat "$work"/set/*.h5 >/dev/null
  train "memory/$round"
  python -c 'import os, sys
for name in sys.argv[1:]:
    os.posix_fadvise(os.open(name, os.O_RDONLY), 0, 0, os.POSIX_FADV_DONTNEED)' "$work"/set/*.h5
  train "files/$round"
done
python - "$work" <<'END'
import json, sys
from pathlib import Path
from statistics import median

def speed(run):
    events = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return next(event["images_per_second"] for event in events if event["event"] == "epoch")

memory, files = ([speed(run) for run in sorted((Path(sys.argv[1]) / kind).iterdir())] for kind in ("memory", "files"))
ratios = [there / here for here, there in zip(memory, files, strict=True)]
print(f"in memory {median(memory):,.0f} images/s, from files {median(files):,.0f} images/s")
print(f"ratio {median(ratios):.2f} (range {min(ratios):.2f} to {max(ratios):.2f}) in {len(ratios)} rounds")
END
