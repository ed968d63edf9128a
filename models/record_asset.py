"""Write the row of a packaged weight file into src/mien/assets/manifest.json (hash and size are computed)."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--licence", required=True)
    parser.add_argument("--source", required=True)
    arguments = parser.parse_args()
    record_asset(arguments.name, licence=arguments.licence, source=arguments.source)
