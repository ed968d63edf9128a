"""`mien data people`: whether the faces of each person in a store look like one person."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from mien.io.files import write_whole, writing
from mien.io.tables import write_table
from mien.perception import IdentityNetwork, find_person
from mien.training.data.store import FaceStore, StoredFace
from mien.typing import Float, Tensor

PEOPLE_FILE = "people.csv"


@dataclass(frozen=True)
class PeopleReport:
    """The people of a store."""

    people: int
    """Number of people."""
    single: int
    """Number of people with one face only."""
    unlike: tuple[StoredFace, ...]
    """Faces that the recognition network finds unlike the others of their person."""


@torch.no_grad()
def check_people(store: Path, *, progress: Callable[[int, int], None] | None = None) -> PeopleReport:
    """Compare the faces of each person, and write STORE/people.csv with those that are unlike the others.

    Args:
        store: A store of `mien data prepare`; it is not changed otherwise.
        progress: Is called with the number of compared people and the total number.

    Returns:
        Counts, and the faces that may show somebody else.

    Raises:
        FormatError: The store is damaged.
        OutputError: The file cannot be written.
    """
    faces, network = FaceStore(str(store)), IdentityNetwork.from_assets()
    people: dict[str, list[int]] = {}
    for number, row in enumerate(faces.faces):
        people.setdefault(row.identity, []).append(number)
    several = [numbers for numbers in people.values() if len(numbers) > 1]
    unlike = list[StoredFace]()
    for done, numbers in enumerate(several, 1):
        chosen = find_person([_features(network, faces, number) for number in numbers])
        unlike += [faces.faces[number] for number, face in zip(numbers, chosen, strict=True) if face is None]
        if progress is not None:
            progress(done, len(several))
    table = [("photo", "identity"), *((row.photo, row.identity) for row in unlike)]
    with writing(store):
        write_whole(store / PEOPLE_FILE, lambda partial: write_table(partial, table))
    return PeopleReport(len(people), len(people) - len(several), tuple(unlike))


def _features(network: IdentityNetwork, faces: FaceStore, number: int) -> Float[Tensor, "1 128"]:
    record = faces[number]
    return network(network.crop(record.crop[None], record.landmarks68_px[None]))
