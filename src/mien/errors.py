"""Every error that mien raises on purpose.

    MienError
    ├── ImageError            a photo cannot be read or is refused
    ├── NoFaceFound           a photo was read but holds no face
    ├── AssetError            a packaged or given weight file is missing or damaged
    ├── FormatError           a file does not follow its format
    ├── BackendUnavailable    the asked-for device or native kernel is not there
    ├── ConfigError           a setting is unknown or out of its range
    ├── ModelMismatch         trained weights belong to another face model
    ├── FitDiverged           an optimisation met a number that is not finite
    ├── TrainingDiverged      a training step met a number that is not finite
    └── OutputError           results cannot be written

and two warnings: FaceLeftOut, if one face of a photo cannot be fitted and the others are returned without it, and
RenamedSetting, if a configuration uses the name of a setting from an earlier version.

A message says what was wrong, where, and what to do about it.
"""

from __future__ import annotations


class MienError(Exception):
    """Base of every error that mien raises on purpose."""


class ImageError(MienError):
    """A photo cannot be read, or is refused for its size or format."""


class NoFaceFound(MienError):
    """A photo was read, and no face was found in it."""


class AssetError(MienError):
    """A packaged or given weight file is missing, damaged or of another version."""


class FormatError(MienError):
    """A file does not follow the format it claims to have."""


class BackendUnavailable(MienError):
    """The asked-for device, or the native kernel, is not available here."""


class ConfigError(MienError):
    """A setting is unknown, of the wrong kind or outside its range."""


class FitDiverged(MienError):
    """An optimisation met a number that is not finite."""


class FaceLeftOut(UserWarning):
    """One of a photo's faces could not be fitted and is missing from the result."""


class RenamedSetting(FutureWarning):
    """A configuration uses the name or value of a setting from an earlier version; the message has the new one."""


class ModelMismatch(MienError):
    """Trained weights belong to another face model than the one at hand."""


class TrainingDiverged(MienError):
    """A training step met a number that is not finite."""


class OutputError(MienError):
    """Results cannot be written: the place is read-only, full or not a folder."""
