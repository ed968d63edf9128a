#!/usr/bin/env bash
# ray 2.60.0 (PyPI).
#
# When an actor's process ends, Ray prints "(raylet) A worker died or was killed ..." on the standard output of the driver, although
# it was started with log_to_driver=False and logging_level="CRITICAL". A program that prints JSON or CSV on its standard output is
# no longer machine-readable as soon as a worker is lost.
# Expected: nothing on standard output, since that belongs to the program; at most a line on standard error.
# Seen on 2026-11-30, Python 3.11. Exit status: 0 while the behaviour is as described, 1 when it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check ray==2.60.0
RAY_USAGE_STATS_ENABLED=0 venv/bin/python - >out.txt 2>err.txt <<'EOF'
import os
import time

import ray

ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="CRITICAL", object_store_memory=100 << 20)


@ray.remote(max_restarts=0)
class Actor:
    def leave(self):
        os._exit(1)


try:
    ray.get(Actor.remote().leave.remote())
except ray.exceptions.RayActorError:
    print("the actor is lost")
time.sleep(3)
EOF
echo "lines on standard output:"
cut -c 1-120 out.txt
grep -q "the actor is lost" out.txt
grep -q "raylet" out.txt || { echo "the behaviour has changed: standard output is the program's alone"; exit 1; }
