"""Put the detail network of a finished run into the package: `python models/package_detail.py RUN`."""

from __future__ import annotations

import argparse
from pathlib import Path

from record_asset import save_asset
from safetensors import safe_open

from mien.detail import DEFAULT_DETAIL

LICENCE = "Apache-2.0"
SOURCE = (
    "trained by mien (docs/detail.md) on drawn faces with relief and marks and on CC-BY 4.0 portraits (DeBruine and "
    "Jones 2017, figshare 5047666 and 4220517), from random weights"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    options = parser.parse_args()
    with safe_open(options.run / "detail.safetensors", framework="pt") as file:
        metadata = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    save_asset(DEFAULT_DETAIL, tensors, metadata, licence=LICENCE, source=SOURCE)


if __name__ == "__main__":
    main()
