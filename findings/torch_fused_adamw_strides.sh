#!/usr/bin/env bash
# torch 2.13.0 (PyPI), CPU.
#
# `torch.optim.AdamW(fused=True)` walks over the memory of a parameter, its gradient and its moments without looking at their
# strides. If they differ in layout, values of one weight are combined with the gradient of another, without an error. It
# happens to channels-last weights whose gradient, or whose moments restored from a checkpoint, are contiguous.
# Expected: the step of the same optimiser with fused=False, to rounding (1e-7). In equal layouts it is.
# Seen on 2026-11-30, Python 3.11. Exit status: 0 while the behaviour is as described, 1 when it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
venv/bin/python - <<'EOF'
import sys

import torch


def step(*, fused: bool, layout: torch.memory_format) -> torch.Tensor:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=fused, foreach=False)
    weight.grad = torch.randn(4, 3, 2, 2).to(memory_format=layout)
    optimizer.step()
    return weight.detach().clone()


errors = {}
for layout in (torch.channels_last, torch.contiguous_format):
    errors[layout] = float((step(fused=True, layout=layout) - step(fused=False, layout=layout)).abs().max())
    print(f"torch {torch.__version__}, channels-last weight, gradient {layout}: fused differs by {errors[layout]:.1e}")
assert errors[torch.channels_last] < 1e-6
if errors[torch.contiguous_format] < 0.01:
    sys.exit("the behaviour has changed: the fused step heeds the layout")
EOF
