"""Coarse reconstructions of a store's photos, computed once per run and kept in its folder.

    RUN/coarse/HASH.safetensors    coefficients of up to 32 photos, under the cameras of their crops in the store

A file's name is the hash of everything that its content depends on: face model, encoder, settings, size of the crops,
and rows of the store's index. Thus a file of other inputs is never read. Augmentation is not kept: `PhotoFaces` moves
a kept face into each training crop, and what depends on the crop's colours is fitted again for each crop.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from mien.camera import Pose
from mien.errors import FitDiverged, FormatError
from mien.io.files import write_whole, writing
from mien.io.tensors import not_finite, read_tensors
from mien.morphable import FaceCoefficients
from mien.networks.weights_file import weights_hash
from mien.training.data.photos import PhotoFaces
from mien.training.data.source import Shard
from mien.training.detail_inputs import CoarseReconstruction
from mien.typing import Tensor

FOLDER, PATTERN = "coarse", "*.safetensors"
VERSION = 1
"""Is raised when the same inputs give another reconstruction."""
GROUP = 32
"""Photos that are reconstructed and written together. The sums of a batch depend on its size, so it never changes."""
_NAMES = ("identity", "expression", "albedo", "lighting", "rotation", "translation", "scale")
_ADVICE = "it is made again"


@dataclass(frozen=True)
class CoarseCache:
    """The kept reconstructions of one run.

    Processes that train together share the folder without a lock: files are written atomically, and all processes
    write the same content.
    """

    folder: Path
    """Folder of the files; missing and damaged ones are made, files of other inputs are removed."""
    photos: PhotoFaces
    reconstruct: CoarseReconstruction

    def load(self, shard: Shard, *, report: Callable[[str], None]) -> dict[str, FaceCoefficients]:
        """Read the reconstructions of all photos, after computing those that are missing.

        Args:
            shard: The process. Each begins with its own part, and reads what others have finished by then.
            report: Is called with a message for the user if something has to be computed.

        Returns:
            One face per key of the store, under the camera of the stored crop.

        Raises:
            FitDiverged: The fit of a photo met a number that is not finite.
            OutputError: The folder cannot be written.
        """
        groups = self._groups()
        faces = {path: face for path, numbers in groups.items() if (face := self._read(path, numbers)) is not None}
        missing = [path for path in groups if path not in faces]
        if missing:
            count = sum(len(groups[path]) for path in missing)
            report(f"computing the coarse reconstructions of {count} of {len(self.photos.store)} photos")
        for path in dict.fromkeys([*missing[shard.rank :: shard.processes], *missing]):
            faces[path] = self._read(path, groups[path]) or self._make(path, groups[path])
        if shard.rank == 0:
            self._remove_others(groups)
        keys = [row.key for row in self.photos.store.faces]
        whole = FaceCoefficients.join([faces[path] for path in groups])
        return {key: whole[k : k + 1] for k, key in enumerate(keys)}

    def _groups(self) -> dict[Path, range]:
        """The files, and the numbers in the store of the faces in each."""
        settings = {
            "version": VERSION,
            "model": self.reconstruct.model.fingerprint,
            "encoder": weights_hash(self.reconstruct.encoder),
            "source": self.reconstruct.settings.source,
            "size": self.photos.size,
            "torch": torch.__version__,
        }
        rows = self.photos.store.faces
        found: dict[Path, range] = {}
        for first in range(0, len(rows), GROUP):
            numbers = range(first, min(first + GROUP, len(rows)))
            content = json.dumps([settings, [asdict(rows[k]) for k in numbers]], sort_keys=True)
            found[self.folder / f"{hashlib.sha256(content.encode()).hexdigest()}.safetensors"] = numbers
        return found

    def _read(self, path: Path, numbers: Sequence[int]) -> FaceCoefficients | None:
        """The faces of a file; None if it is missing or damaged."""
        if not path.exists():
            return None
        with suppress(FormatError, KeyError):
            metadata, tensors = read_tensors(path, advice=_ADVICE)
            whole = metadata["sha256"] == _digest(tensors) and not_finite(tensors) is None
            if whole and all(len(tensor) == len(numbers) for tensor in tensors.values()):
                pose = Pose(tensors["rotation"], tensors["translation"], tensors["scale"])
                return FaceCoefficients(**{name: tensors[name] for name in _NAMES[:4]}, pose=pose)
        return None

    def _make(self, path: Path, numbers: Sequence[int]) -> FaceCoefficients:
        batch = self.photos.plain(numbers).to(self.reconstruct.model.mean.device)
        try:
            face = self.reconstruct.of_photos(batch).to(torch.device("cpu"))
        except FitDiverged as error:
            raise FitDiverged(
                f"the coarse reconstruction failed: {error}; its photos: {', '.join(batch.names)}"
            ) from error
        values = (face.identity, face.expression, face.albedo, face.lighting, face.pose.rotation,
                  face.pose.translation, face.pose.scale)  # fmt: skip
        tensors = {name: value.contiguous() for name, value in zip(_NAMES, values, strict=True)}
        with writing(path, advice="free some space and continue with --resume"):
            path.parent.mkdir(parents=True, exist_ok=True)
            metadata = {"sha256": _digest(tensors)}
            write_whole(path, lambda partial: save_file(tensors, partial, metadata=metadata))
        return face

    def _remove_others(self, groups: dict[Path, range]) -> None:
        for path in self.folder.glob(PATTERN):
            if path not in groups:
                with writing(path, advice="remove it"):
                    path.unlink()


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
