"""The file of a trained network: float16 weights in safetensors, and in its header what they belong to."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from mien.errors import ConfigError, FormatError, ModelMismatch
from mien.io.files import write_whole
from mien.morphable import MorphableModel
from mien.typing import Tensor

N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class NetworkKind:
    """One kind of network file: what it calls itself, and what it says its network is made of."""

    format: str
    settings_key: str
    """Where the header has the network's settings, as JSON."""

    def save(
        self, network: nn.Module, path: Path, *, model_hash: str, settings: Mapping[str, object], notes: dict[str, str]
    ) -> None:
        """Write the network for `load`; `notes` go into the header."""
        metadata = {"format": self.format, "model_hash": model_hash, self.settings_key: json.dumps(settings), **notes}
        tensors = {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
        stored = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        write_whole(path, lambda partial: save_file(stored, partial, metadata=metadata))

    def load(self, path: Path, *, model: MorphableModel, build: Callable[[Any], N]) -> N:
        """The network that `build` makes of the settings in the file, with the file's weights, frozen.

        FormatError for another kind of file or a damaged one, ModelMismatch where it was trained with another model.
        """
        metadata, tensors = _read(path)
        if metadata.get("format") != self.format:
            raise FormatError(
                f"{path} says format {metadata.get('format')!r}; this version of mien reads {self.format!r}."
            )
        try:
            check_model(model, metadata["model_hash"], whose=str(path))
            network = build(json.loads(metadata[self.settings_key]))
            network.load_state_dict(current_names(tensors))
        except (ConfigError, RuntimeError, TypeError, ValueError, KeyError) as error:
            raise FormatError(f"{path} does not hold a network of format {self.format}: {error}") from error
        return network.eval().requires_grad_(False)


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{path} is not a readable safetensors file: {error}") from error


def check_model(model: MorphableModel, expected_hash: str, *, whose: str) -> None:
    """Raise ModelMismatch unless the model is the one with the expected hash."""
    if model.fingerprint != expected_hash:
        raise ModelMismatch(
            f"{whose} was made with another face model (hash {expected_hash[:12]}) than {model.name!r} "
            f"({model.fingerprint[:12]}); use that model, or train again."
        )


def current_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's tensors under today's names: mien 0.1 called the refiner "look"."""
    return {
        re.sub(r"^((?:network|average|optimizer)\.(?:module\.)?)?look\.", r"\1refiner.", name): value
        for name, value in tensors.items()
    }
