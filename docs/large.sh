#!/usr/bin/env bash
# Measure the speed of a training whose images are read from files, as a ratio to the speed with all images in the page cache:
# runs in turns, 200 steps each, fully shuffled, with a data set of 2.5 GB.
#
#   docs/large.sh files [ROUNDS]   the page cache is empty at the start of each run
#   docs/large.sh limit [ROUNDS]   the job and the page cache of its files may take 614 MB together, a quarter of the data set:
#                                  a limit of a control group (version 1), which needs root
#
# In an activated environment; 5 rounds by default; needs 5 GB in TMPDIR.
set -euo pipefail
cd "$(dirname "$0")/.."
kind=$1
work=$(mktemp -d)
group=/sys/fs/cgroup/memory/dpcnn-large
trap 'rm -rf "$work"; if [ "$kind" = limit ]; then rmdir "$group"; fi' EXIT
if [ "$kind" = limit ]; then
  mkdir "$group"
  echo 614400000 >"$group/memory.limit_in_bytes"
fi
mkdir "$work/arrays"
python - "$work/arrays" <<'END'
import sys
import numpy as np

rng, count, shape = np.random.default_rng(0), 50_000, (128, 128, 3)
images = np.lib.format.open_memmap(f"{sys.argv[1]}/x_train.npy", "w+", np.uint8, (count, *shape))
for start in range(0, count, 1000):
    images[start : start + 1000] = rng.integers(0, 256, (1000, *shape), np.uint8)
np.save(f"{sys.argv[1]}/x_test.npy", images[:10])
for name, n in (("train", count), ("test", 10)):
    np.save(f"{sys.argv[1]}/y_{name}.npy", rng.integers(0, 10, n))
END
python -m dpcnn.data prepare "$work/arrays" --out "$work/set" --contiguous
rm -r "$work/arrays"
sync
train() {
  mpirun -n 2 python -m dpcnn.train --recipe fast --data "$work/set" --batch 64 --microbatch 16 --memory 64 --validation 100 \
    --epochs 1 --max-steps 200 --no-curves --out "$work/$1" >/dev/null </dev/null
}
empty_cache() {
  python -c 'import os, sys
for name in sys.argv[1:]:
    os.posix_fadvise(os.open(name, os.O_RDONLY), 0, 0, os.POSIX_FADV_DONTNEED)' "$work"/set/*.h5
}
train first # it verifies the shards, so that the others read nothing before the first step
for round in $(seq "${2:-5}"); do
  cat "$work"/set/*.h5 >/dev/null
  train "memory/$round"
  empty_cache
  (if [ "$kind" = limit ]; then echo "$BASHPID" >"$group/tasks"; fi && train "$kind/$round")
done
python - "$work" "$kind" <<'END'
import json, sys
from pathlib import Path
from statistics import median

def speed(run):
    events = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return next(event["images_per_second"] for event in events if event["event"] == "epoch")

work, kind = Path(sys.argv[1]), sys.argv[2]
memory, other = ([speed(run) for run in sorted((work / each).iterdir())] for each in ("memory", kind))
ratios = [there / here for here, there in zip(memory, other, strict=True)]
print(f"memory {median(memory):,.0f} images/s, {kind} {median(other):,.0f} images/s")
print(f"ratio {median(ratios):.2f} (range {min(ratios):.2f} to {max(ratios):.2f}) in {len(ratios)} rounds")
END
