"""Weights files of trained networks: float16 tensors in safetensors; the header names the face model and settings.

Names that mien 0.1 wrote into files and checkpoints are translated here, and nowhere else.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from safetensors.torch import save_file
from torch import nn

from mien.errors import ConfigError, FormatError, ModelMismatch
from mien.io.files import write_whole
from mien.io.reading import converted, parse_json
from mien.io.tensors import not_finite, read_tensors
from mien.memory import typed_out_of_memory
from mien.morphable import MorphableModel
from mien.morphable.revisions import is_made_for
from mien.typing import Tensor

N = TypeVar("N", bound=nn.Module)
S = TypeVar("S")

_ADVICE = "copy the file again, or train the network again"

OLD_MODULES = (
    ("look.", "refiner."),
    ("refiner.seen.", "refiner.map_layer."),
    ("refiner.told.", "refiner.state_layer."),
    ("refiner.second.", "refiner.hidden_layer."),
)
"""Module names of mien 0.1 and today's, applied in this order."""
OLD_SETTINGS = {"look": "refiner"}
"""Names of settings in the headers of mien 0.1."""
CHECKPOINT_PARTS = re.compile(r"(?:network|average|optimizer)\.(?:module\.)?|")
"""Text that a checkpoint puts before the name of a network's tensor; a weights file adds no prefix."""


@dataclass(frozen=True)
class NetworkKind(Generic[S]):
    """A kind of weights file: the format it names, and the key under which it keeps the network's settings."""

    format: str
    """Value of `format` in the header."""
    settings_key: str
    """Key in the header of the network's settings, as JSON."""
    settings: type[S]
    """Dataclass of the settings, which raises ConfigError for a value out of range."""

    def save(self, network: nn.Module, path: Path, *, model_hash: str, settings: S, notes: dict[str, str]) -> None:
        """Write a network for `load`.

        Args:
            network: Its floating-point tensors are rounded to float16.
            path: File to write.
            model_hash: Fingerprint of the face model that the network was trained with.
            settings: Arguments from which the network can be built again.
            notes: Further entries of the header.
        """
        header = json.dumps(vars(settings))
        metadata = {"format": self.format, "model_hash": model_hash, self.settings_key: header, **notes}
        tensors = {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
        stored = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        write_whole(path, lambda partial: save_file(stored, partial, metadata=metadata))

    def load(self, path: Path, *, model: MorphableModel, build: Callable[[S], N]) -> N:
        """Read a network; it is returned in evaluation mode, and its parameters need no gradient.

        Args:
            path: File that `save` wrote, in this version of mien or in 0.1.
            model: Face model that the network must have been trained with.
            build: Makes the network from the settings in the file.

        Raises:
            FormatError: The file is damaged or of another kind.
            ModelMismatch: The network was trained with another face model.
            OutOfMemory: Memory ran out.
        """
        metadata, tensors = read_tensors(path, advice=_ADVICE)
        if metadata.get("format") != self.format:
            raise FormatError(
                f"{path} has format {metadata.get('format')!r}; this version of mien reads {self.format!r}."
            )
        damaged = not_finite(tensors)
        if damaged is not None:
            raise FormatError(f"{path}: the weights {damaged} hold values that are not finite; {_ADVICE}.")
        try:
            check_model(model, metadata["model_hash"], whose=str(path))
            network = typed_out_of_memory(build)(self._settings_of(metadata[self.settings_key]))
            network.load_state_dict(current_names(tensors))
        except (ConfigError, FormatError, RuntimeError, KeyError) as error:
            raise FormatError(f"{path} does not hold a network of format {self.format}: {error}") from error
        return network.eval().requires_grad_(False)

    def _settings_of(self, text: str) -> S:
        stored = parse_json(text, dict[str, object], "its header", advice=_ADVICE)
        renamed = {str(OLD_SETTINGS.get(name, name)): value for name, value in stored.items()}
        return converted(renamed, self.settings, "its header", advice=_ADVICE)


def check_model(model: MorphableModel, expected_hash: str, *, whose: str) -> None:
    """Check that a file belongs to a face model.

    Args:
        model: The face model in use.
        expected_hash: Fingerprint of the face model that the file was made with.
        whose: The file, for the message.

    Raises:
        ModelMismatch: The fingerprints differ.
    """
    if not is_made_for(expected_hash, model.fingerprint):
        raise ModelMismatch(
            f"{whose} was made with another face model (hash {expected_hash[:12]}) than {model.name!r} "
            f"({model.fingerprint[:12]}); use that model, or train again."
        )


def weights_hash(network: nn.Module) -> str:
    """SHA-256 of a network's tensors and their names in mien 0.1, so that hashes in older runs stay valid."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(_name_of_0_1(name).encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _name_of_0_1(name: str) -> str:
    for old, new in reversed(OLD_MODULES):
        if name.startswith(new):
            name = old + name.removeprefix(new)
    return name


def current_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate the tensor names of a weights file or checkpoint of mien 0.1; today's names stay as they are."""
    return {_current_name(name): value for name, value in tensors.items()}


def _current_name(name: str) -> str:
    prefix = CHECKPOINT_PARTS.match(name)
    start = 0 if prefix is None else prefix.end()
    rest = name[start:]
    for old, new in OLD_MODULES:
        if rest.startswith(old):
            rest = new + rest.removeprefix(old)
    return name[:start] + rest
