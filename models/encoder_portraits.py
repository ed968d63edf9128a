"""Collect the portraits that the packaged encoder may learn from: free to use, of adults, of nobody in a demo or test.

    python models/encoder_portraits.py ../shared/data/photos_ccby out/portraits
    mien data prepare out/portraits --table out/portraits/people.csv -o out/portraits_store
    mien data skins out/portraits_store -o out/skins.safetensors
    mien train base --config configs/base.toml --data out/portraits_store \\
        --set data.skins=out/skins.safetensors -o runs/base
    mien train base --config configs/base_colours.toml --data out/portraits_store \\
        --set data.skins=out/skins.safetensors --set encoder.start=runs/base/encoder.safetensors -o runs/colours
    mien train base --config configs/base_colours.toml --data out/portraits_store \\
        --set loop.seed=1 --set loop.steps=500 --set data.skins=out/skins.safetensors \\
        --set encoder.start=runs/colours/encoder.safetensors -o runs/colours2
    mien train base --config configs/base_longer.toml --data out/portraits_store \\
        --set data.skins=out/skins.safetensors --set encoder.start=runs/colours2/encoder.safetensors -o runs/longer
    mien train base --config configs/base_points.toml --data out/portraits_store \\
        --set data.skins=out/skins.safetensors --set encoder.start=runs/longer/encoder.safetensors -o runs/points
    mien train base --config configs/base_points.toml --data out/portraits_store --set loop.seed=5 \\
        --set data.skins=out/skins.safetensors --set encoder.start=runs/points/encoder.safetensors -o runs/again
    mien data draw -o runs/drawn --faces 81920 --seed 21 --jitter 0.2 --skins out/skins.safetensors
    torchrun --standalone --nproc-per-node=2 -m mien.cli train base --config configs/base_look.toml \\
        --data out/portraits_store --set data.skins=out/skins.safetensors \\
        --set encoder.start=runs/again/encoder.safetensors -o runs/look
    mien data draw -o runs/drawn --faces 196608 --seed 21 --jitter 0.2 --skins out/skins.safetensors
    torchrun --standalone --nproc-per-node=2 -m mien.cli train base --config configs/base_look_longer.toml \\
        --data out/portraits_store --set data.skins=out/skins.safetensors \\
        --set encoder.start=runs/look/encoder.safetensors -o runs/look_longer
    mien data draw -o runs/new --faces 61952 --seed 25 --jitter 0.2 --skins out/skins.safetensors
    torchrun --standalone --nproc-per-node=2 -m mien.cli train base --config configs/base_look_twice.toml \\
        --data out/portraits_store --set data.skins=out/skins.safetensors --set data.drawn=runs/new \\
        --set encoder.start=runs/look_longer/encoder.safetensors -o runs/look_twice
    mien data draw -o runs/more --faces 92160 --seed 29 --jitter 0.2 --skins out/skins.safetensors
    torchrun --standalone --nproc-per-node=2 -m mien.cli train base --config configs/base_look_thrice.toml \\
        --data out/portraits_store --set data.skins=out/skins.safetensors --set data.drawn=runs/more \\
        --set encoder.start=runs/look_twice/encoder.safetensors -o runs/look_thrice
    python models/package_network.py runs/look_thrice

The packaged file's first three runs were made before portraits left their studio in augmentation and the shape loss
looked beyond similarity, so these commands make an encoder like it, not the same file.

The pictures are linked, not copied. `manifest.csv` of the source says who is who, and how old.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

SHOWN = frozenset(f"london_{number}" for number in ("012", "037", "099", "119", "136"))
"""People of the demonstrations and tests; the CC0 self-portraits stay in."""
ADULT = 18


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path, help="photos_ccby")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    with (options.source / "manifest.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    chosen = [row for row in rows if row["subject"] not in SHOWN and (not row["age"] or int(row["age"]) >= ADULT)]
    for row in chosen:
        link = options.out / row["file"]
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to((options.source / row["file"]).resolve())
    with (options.out / "people.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "identity", "age"])
        writer.writerows([row["file"], row["subject"], row["age"]] for row in chosen)
    print(f"{len(chosen)} of {len(rows)} portraits in {options.out}")


if __name__ == "__main__":
    main()
