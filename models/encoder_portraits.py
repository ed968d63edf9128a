"""Collect the training portraits of the packaged networks: free to use, of adults, and not in demonstrations or tests.

    python models/encoder_portraits.py PHOTOS_CCBY PORTRAITS_PD out/portraits
    mien data prepare out/portraits --table out/portraits/people.csv -o out/portraits_store
    mien train recipe configs/packaged_encoder.toml --data out/portraits_store -o runs/packaged_encoder
    python models/package_network.py runs/packaged_encoder
    mien train recipe configs/packaged_detail.toml --data out/portraits_store -o runs/packaged_detail
    python models/package_network.py runs/packaged_detail

docs/training.md says where this recipe differs from the packaged files' own history. The images are linked, not copied.
`manifest.csv` of PHOTOS_CCBY has the identity and age of each person. PORTRAITS_PD holds portraits of members of the US
Congress in the public domain, one per person; those in colour are taken.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

SHOWN = frozenset(f"london_{number}" for number in ("012", "037", "099", "119", "136"))
"""People in demonstrations and tests. The CC0 self-portraits are kept."""
ADULT = 18


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path, help="photos_ccby")
    parser.add_argument("congress", type=Path, help="portraits_pd")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    rows = _manifest(options.source)
    chosen = [row for row in rows if row["subject"] not in SHOWN and (not row["age"] or int(row["age"]) >= ADULT)]
    people = [(f"ccby/{row['file']}", options.source / row["file"], row["subject"], row["age"]) for row in chosen]
    portraits = [row["file"] for row in _manifest(options.congress) if row["colour"] == "1"]
    people += [(f"pd/{name}", options.congress / "images" / name, f"pd_{Path(name).stem}", "") for name in portraits]
    for name, photo, _, _ in people:
        link = options.out / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(photo.resolve())
    with (options.out / "people.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "identity", "age"])
        writer.writerows([name, person, age] for name, _, person, age in people)
    print(f"{len(people)} portraits in {options.out}, {len(rows) - len(chosen)} left out")


def _manifest(folder: Path) -> list[dict[str, str]]:
    with (folder / "manifest.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
