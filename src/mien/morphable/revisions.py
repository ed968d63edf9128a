"""Revisions of the packaged model that keep its mesh and bases, so that networks of the earlier revision still fit."""

from __future__ import annotations

_EARLIER = {
    # 0.2: points of the lids and of the inner corners of the eyes moved, see `revise_eyes` in models/landmarks.py.
    "b2acf4d8c8bdaedb179af4604df2c5253b4d5b9a5d5fa378d3b93888c899a523": (
        "30b9aee4acb2432d83ef93b78207b8773029285ea413a9b9b7deaa9791884891",
    ),
}
"""Fingerprint of a revision: fingerprints of the earlier ones with equal mesh, bases and albedo."""


def is_made_for(file_hash: str, fingerprint: str) -> bool:
    """Whether a file belongs to a face model: to the model itself, or to an earlier revision with the same bases.

    Args:
        file_hash: Fingerprint of the face model that the file was made with.
        fingerprint: Fingerprint of the face model in use.
    """
    return file_hash == fingerprint or file_hash in _EARLIER.get(fingerprint, ())
