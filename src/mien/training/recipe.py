"""Recipes: several stages in one TOML file that make a network from nothing, run by one command.

    model = "mien-face"

    [[stage]]
    name = "pretrain"
    kind = "coarse"                 # "skins", "synthetic", "fits", "coarse", "centre" or "detail"
    encoder.image_size = 96
    loop.steps = 2500

    [[stage]]
    name = "colours"                # starts from the encoder and the settings of "pretrain"
    kind = "coarse"
    loop.steps = 600

A "coarse" or "detail" stage takes the settings of the stage of its kind before it, changes those that it names, and
starts from that stage's network. Every stage uses the last "skins" file before it. `data.synthetic` names the store of
a "synthetic" stage. Each stage has its own folder, in which `stage.json` marks it as finished.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from mien.errors import ConfigError
from mien.training.config import CoarseConfig, DetailConfig
from mien.training.config_file import apply_changes, build_config, current_settings, merge, read_toml

Kind = Literal["skins", "synthetic", "fits", "coarse", "centre", "detail"]
CONFIGS = {"coarse": CoarseConfig, "detail": DetailConfig}


@dataclass(frozen=True)
class SkinsStage:
    """Collects skin colours from the training photos, as `mien data skins` does."""


@dataclass(frozen=True)
class SyntheticStage:
    """Makes a store of synthetic faces, or adds faces to one."""

    faces: int
    """Number of faces in the store afterwards."""
    size: int = 128
    """Side of the crops, pixels."""
    seed: int = 0
    jitter: float = 1.0
    """See `DataSettings.jitter`."""
    store: str = ""
    """Name of the store; empty for the stage's own name. A second stage with the same store adds faces to it."""


@dataclass(frozen=True)
class FitsStage:
    """Fits the photos of the store, as `mien data fit` does."""


@dataclass(frozen=True)
class CentreStage:
    """Removes the mean difference to the fits of photos from the identity of the last encoder, see `centring`."""


Settings: TypeAlias = SkinsStage | SyntheticStage | FitsStage | CentreStage | CoarseConfig | DetailConfig


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe; its settings hold names of stages where a run needs paths."""

    name: str
    kind: Kind
    settings: Settings
    start: str = ""
    """Name of the stage whose network this one starts from; empty for a new network."""
    skins: str = ""
    """Name of the stage with the skins; empty for none."""
    encoder: str = ""
    """Of a "detail" stage, the stage with the encoder below the maps; empty for the packaged encoder."""

    def record(self) -> dict[str, Any]:
        """Everything that decides the stage's result, as JSON values."""
        return {"kind": self.kind, "start": self.start, "skins": self.skins, "encoder": self.encoder,
                "settings": asdict(self.settings)}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """The stages of a recipe in their order."""

    model: str
    """Face model: a registered name or a path."""
    stages: tuple[Stage, ...]

    def stage(self, name: str) -> Stage:
        """Find a stage by name.

        Raises:
            ConfigError: No stage has this name.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise ConfigError(f"stage={name!r} is unknown; use one of: {', '.join(s.name for s in self.stages)}.")


def load_recipe(path: Path) -> Recipe:
    """Read a recipe and check the settings of all stages.

    Args:
        path: TOML file.

    Raises:
        ConfigError: The file cannot be read, or a stage has a wrong setting; the message names the stage.
    """
    content = read_toml(path)
    model, tables = content.pop("model", "mien-face"), content.pop("stage", None)
    if content or not isinstance(model, str) or not isinstance(tables, list) or not tables:
        raise ConfigError(f'{path} must have `model = "…"` and at least one [[stage]], and nothing else.')
    stages: list[Stage] = []
    for table in tables:
        stages.append(_stage(dict(table), stages, model))
    return Recipe(model, tuple(stages))


def _stage(table: dict[str, Any], before: list[Stage], model: str) -> Stage:
    name, kind = table.pop("name", None), table.pop("kind", None)
    if not isinstance(name, str) or not name.replace("_", "a").isalnum() or name in {stage.name for stage in before}:
        raise ConfigError(f"stage {len(before) + 1}: name={name!r} must be unique and have letters, digits and _ only.")
    if kind not in get_args(Kind):
        raise ConfigError(f"stage {name!r}: kind={kind!r} must be one of {', '.join(get_args(Kind))}.")
    skins = _last(before, "skins")
    try:
        if kind == "skins":
            return Stage(name, kind, _plain(SkinsStage, table))
        if kind == "fits":
            return Stage(name, kind, _plain(FitsStage, table))
        if kind == "centre":
            return Stage(name, kind, _plain(CentreStage, table), _last(before, "coarse"))
        if kind == "synthetic":
            settings = _plain(SyntheticStage, table)
            return Stage(name, kind, replace(settings, store=settings.store or name), skins=skins)
        start = _last(before, kind)
        inherited = asdict(next(stage for stage in before if stage.name == start).settings) if start else {}
        changes = merge({"model": model}, current_settings(table))
        config = build_config(CONFIGS[kind], apply_changes(inherited, changes))
        _check_store(config, before)
        return Stage(name, kind, config, start, skins, _last(before, "coarse") if kind == "detail" else "")
    except ConfigError as error:
        raise ConfigError(f"stage {name!r}: {error}") from error


def _plain(kind: type[Any], table: Mapping[str, Any]) -> Any:
    try:
        return build_config(kind, table)
    except TypeError as error:  # a dataclass names its missing arguments
        names = ", ".join(f.name for f in fields(kind))
        raise ConfigError(f"a setting is missing ({error}); the settings are: {names}.") from error


def _last(stages: list[Stage], kind: str) -> str:
    return next((stage.name for stage in reversed(stages) if stage.kind == kind), "")


def _check_store(config: CoarseConfig | DetailConfig, before: list[Stage]) -> None:
    stores = [stage.settings.store for stage in before if isinstance(stage.settings, SyntheticStage)]
    if config.data.synthetic and config.data.synthetic not in stores:
        raise ConfigError(
            f"data.synthetic={config.data.synthetic!r} is not a store of an earlier stage; use one of: "
            f"{', '.join(stores)}."
        )
