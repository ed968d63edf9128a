"""Write the row of a packaged weight file into src/mien/assets/manifest.json (hash and size are computed)."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ASSETS = Path(__file__).resolve().parent.parent / "src" / "mien" / "assets"


def record_asset(name: str, *, licence: str, source: str) -> None:
    """Add or replace the manifest's row of ASSETS/name."""
    data = (ASSETS / name).read_bytes()
    row = {
        "name": name,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "licence": licence,
        "source": source,
    }
    manifest = ASSETS / "manifest.json"
    rows = json.loads(manifest.read_text(encoding="utf-8")) if manifest.exists() else []
    rows = sorted([*(r for r in rows if r["name"] != name), row], key=lambda r: r["name"])
    manifest.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_asset(
    name: str, tensors: dict[str, torch.Tensor], metadata: dict[str, str], *, licence: str, source: str
) -> None:
    """Write ASSETS/name as safetensors and record it; the same tensors give the same bytes, every time.

    The safetensors library writes metadata in an order that changes from run to run; here all keys are sorted.
    """
    types = {"float16": "F16", "float32": "F32", "int32": "I32", "int64": "I64"}
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    parts, position = [], 0
    for key, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        array = tensor.detach().cpu().contiguous().numpy()
        end = position + array.nbytes
        header[key] = {
            "dtype": types[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [position, end],
        }
        parts.append(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    (ASSETS / name).write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))
    record_asset(name, licence=licence, source=source)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--licence", required=True)
    parser.add_argument("--source", required=True)
    arguments = parser.parse_args()
    record_asset(arguments.name, licence=arguments.licence, source=arguments.source)
