"""All errors that mien raises on purpose.

    MienError
    ├── ImageError            a photo cannot be read or is refused
    ├── VideoError            a video cannot be read
    ├── NoFaceFound           a photo shows no face
    ├── AssetError            a packaged file is missing or damaged
    ├── FormatError           a file does not follow its format
    ├── BackendUnavailable    the requested device or native kernel is missing
    ├── ConfigError           a setting is unknown or out of range
    ├── ModelMismatch         trained weights belong to another face model
    ├── FitDiverged           an optimisation reached a number that is not finite
    ├── OutOfMemory           memory ran out
    ├── TrainingDiverged      a training step reached a number that is not finite
    ├── OutputError           results cannot be written
    └── WorkerDied            the process that worked on a photo ended before its time

and nine warnings: FaceLeftOut, if one face of a photo cannot be fitted and the others are returned without it,
FaceDoubtful, if a photo shows a face badly, so that its result is less certain,
PhotoLeftOut, if one of several photos of a person does not show that person or counts for little,
FramesLeftOut, if parts of a video are damaged and missing from the result,
PhotoReduced, if a photo is decoded at a smaller size, RenamedSetting, if a configuration uses the name of a setting
from an earlier version, TorchImportedFirst, if the processor time grows because torch was imported before mien,
ForkedAfterImport, if a forked process may wait for ever, and CheckpointDoubtful, if a resumed run cannot use its newest
checkpoint or cannot check it.

A message says what is wrong, where, and what to do.
"""

from __future__ import annotations


class MienError(Exception):
    """Base class of all errors that mien raises on purpose."""


class ImageError(MienError):
    """A photo cannot be read, or its size or format is refused."""


class VideoError(MienError):
    """A video cannot be read, or its size is refused."""


class NoFaceFound(MienError):
    """The detector found no face in a photo."""


class AssetError(MienError):
    """A packaged file is missing, damaged or of another version."""


class FormatError(MienError):
    """A file does not follow the format that it should have."""


class BackendUnavailable(MienError):
    """The requested device or native kernel is missing here."""


class ConfigError(MienError):
    """A setting is unknown, of the wrong type or out of range."""


class OutOfMemory(MienError, MemoryError):
    """Memory ran out."""


class FitDiverged(MienError):
    """An optimisation reached a number that is not finite."""


class FaceLeftOut(UserWarning):
    """One of several faces of a photo could not be fitted and is missing from the result."""


class FaceDoubtful(UserWarning):
    """A face is covered, turned away, cut off, badly lit or otherwise hard to see, so its result is less certain."""


class PhotoLeftOut(UserWarning):
    """One of several photos of a person does not show that person, or fits so badly that it counts for little."""


class FramesLeftOut(UserWarning):
    """Parts of a video are damaged and missing from the result."""


class PhotoReduced(UserWarning):
    """A photo has more pixels than the limit and was decoded at a smaller size."""


class RenamedSetting(FutureWarning):
    """A configuration uses the name or value of a setting from an earlier version; the message has the new one."""


class TorchImportedFirst(UserWarning):
    """Torch was imported before mien, so its threads wait for each other in a long busy loop."""


class ForkedAfterImport(UserWarning):
    """The process was forked after mien was imported; torch's threads do not survive a fork."""


class CheckpointDoubtful(UserWarning):
    """The newest checkpoint of a resumed run is damaged, gone, or without hashes that would show damage."""


class ModelMismatch(MienError):
    """Trained weights belong to another face model than the given one."""


class TrainingDiverged(MienError):
    """A training step reached a number that is not finite."""


class OutputError(MienError):
    """Results cannot be written: the place is read-only, full or not a folder."""


class WorkerDied(MienError):
    """The process that worked on a photo ended before its time, for example because memory ran out."""
