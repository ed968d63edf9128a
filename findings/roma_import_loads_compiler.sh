#!/usr/bin/env bash
# roma 1.8.0 with torch 2.13.0 (PyPI).
#
# `import roma`, a library of rotation formulas, imports PyTorch's compiler front end: 829 more modules beside torch (with
# the CPU build), about 1 s of processor time and 145 MB. roma/mappings.py calls torch._dynamo.disable() at module
# level, for two functions that only compiled programs need.
# Expected: an import that costs about what its own six modules cost; torch itself leaves torch._dynamo unloaded.
# Seen on 2026-11-29, Python 3.11. Exit status: 0 while the behaviour is as described, 1 when it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 roma==1.8.0
venv/bin/python - <<'EOF'
import sys

import torch

before = set(sys.modules)
assert "torch._dynamo" not in before, "torch itself loads its compiler now"
import roma

new = set(sys.modules) - before
own = sum(name.split(".")[0] == "roma" for name in new)
print(f"torch {torch.__version__}, roma {roma.__version__}: {len(new)} modules, {own} of them roma's")
if "torch._dynamo" not in new:
    sys.exit("the behaviour has changed: torch._dynamo is not loaded")
EOF
