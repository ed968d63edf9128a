#!/usr/bin/env bash
# torch 2.13.0 with onnxscript 0.7.2 and onnx 1.23.2, run by onnxruntime 1.32.0 (PyPI), CPU.
#
# torch.onnx.export(dynamo=True) leaves out arguments that its ONNX form has no place for, without an error or a warning, so
# that the exported network computes other values than PyTorch:
#   interpolate(antialias=True)        align_corners=True and a given scale_factor are left out
#   avg_pool2d(divisor_override=1)     the divisor is left out: averages instead of sums
#   scatter_reduce(reduce="mean")      becomes a scatter that overwrites: the last value instead of the mean
# Without these arguments, or with reduce="sum", both agree. In onnxscript's sources and tests the gaps are known; users
# of the exporter are not told. Other operators without a counterpart, cummax for one, do raise ConversionError.
# Expected: the values of PyTorch, or an error.
# Seen on 2026-11-30, Python 3.11. Exit status: 0 while the behaviour is as described, 1 when it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

cat > check.py <<'EOF'
import logging
import sys
import warnings

import onnxruntime
import torch
from torch.nn.functional import avg_pool2d, interpolate

logging.disable(logging.WARNING)  # torchvision is not installed
rows = torch.tensor([0, 0, 1])


def scatter(x, reduce):
    return torch.zeros(2).scatter_reduce(0, rows, x[0, 0, 0, :3], reduce, include_self=False)


class Call(torch.nn.Module):
    def __init__(self, function, arguments):
        super().__init__()
        self.function, self.arguments = function, arguments

    def forward(self, x):
        return self.function(x, **self.arguments)


smooth = {"mode": "bilinear", "antialias": True}
agree, differ = [
    (interpolate, smooth | {"size": (3, 3)}), (avg_pool2d, {"kernel_size": 2}), (scatter, {"reduce": "sum"}),
], [
    (interpolate, smooth | {"size": (3, 3), "align_corners": True}), (interpolate, smooth | {"scale_factor": 0.4}),
    (avg_pool2d, {"kernel_size": 2, "divisor_override": 1}), (scatter, {"reduce": "mean"}),
]
x = torch.arange(36.0).reshape(1, 1, 6, 6) + 1
changed = False
for function, arguments in agree + differ:
    module = Call(function, arguments).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Python's own, on deprecated names
        program = torch.onnx.export(module, (x,), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    expected = module(x)
    equal = torch.allclose(torch.from_numpy(found), expected, atol=1e-3)
    values = [[round(value, 2) for value in array.flatten()[:3].tolist()] for array in (expected, found)]
    print(f"torch {torch.__version__}, {function.__name__}({arguments}): PyTorch {values[0]}, ONNX {values[1]}")
    changed |= equal != ((function, arguments) in agree)
if changed:
    sys.exit("the behaviour has changed")
EOF

python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 onnx==1.23.2 onnxscript==0.7.2 \
    onnxruntime==1.32.0
venv/bin/python check.py
