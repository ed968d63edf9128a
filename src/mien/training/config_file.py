"""Configurations as TOML: reading with `--set section.key=value`, writing, comparing, and names of mien 0.1.

An unknown key is an error that names the nearest known key. `dump` writes a resolved configuration as TOML again.
"""

from __future__ import annotations

import difflib
import json
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from mien.errors import ConfigError, RenamedSetting
from mien.io.reading import parse_toml
from mien.io.reading import read_toml as _read_toml

T = TypeVar("T")
RENAMED = {
    "encoder.look": "encoder.refiner",
    "encoder.looks": "encoder.refine_steps",
    "data.drawn": "data.synthetic",
    "data.drawn_faces": "data.synthetic_faces",
    "loss.pixel": "loss.photometric",
    "loss.recognition": "loss.identity",
    "relief.fold_strength": "relief.wrinkle_strength",
    "base.source": "coarse.source",
    "base.identity_error": "coarse.identity_error",
    "base.expression_error": "coarse.expression_error",
    "base.albedo_error": "coarse.albedo_error",
    "base.lighting_error": "coarse.lighting_error",
    "base.pose_error": "coarse.pose_error",
}
"""Settings of mien 0.1 and their names of today. The old names are accepted until 0.3, with a warning."""
ADDED = {
    "data.fits": "false",
    "data.photos_per_person": "1",
    "encoder.refine_from": '"prediction"',
    "loss.person_albedo": "0.0",
    "loss.person_shape": "0.0",
}
"""Settings that records of mien 0.2 do not have, and their effect there, as `_literal` writes it."""
RENAMED_VALUES = {("encoder.learn", "second look"): "refiner"}
_MAX_CHANGE = 4096
_LARGEST = 2**62
PATHS = ("model", "data.skins", "data.synthetic", "encoder.start", "encoder.weights", "network.start")
"""Settings that may be paths."""


def load_config(kind: type[T], path: Path | None, *, changes: Sequence[str] = ()) -> T:
    """Read a configuration.

    Args:
        kind: Class of the configuration, `CoarseConfig` or `DetailConfig`.
        path: TOML file; None takes the defaults.
        changes: Settings as `section.key=value`, applied after the file.

    Raises:
        ConfigError: The file cannot be read, a key is unknown, a value has the wrong type or range, or the file or the
            changes give both loop.steps and loop.epochs.
    """
    content = {} if path is None else current_settings(read_toml(path))
    given = merge({}, *(_change(change) for change in changes))
    return build_config(kind, apply_changes(apply_changes({}, content), given))


def load_record(kind: type[T], path: Path) -> T:
    """Read the configuration that a run recorded, of this version or of an earlier one.

    Args:
        kind: Class of the configuration.
        path: The run's config.toml.

    Raises:
        ConfigError: As `load_config`.
    """
    return build_config(kind, _without_unused(current_settings(read_toml(path))))


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: The file is missing or is not TOML.
    """
    return _read_toml(path, error=ConfigError)


def build_config(kind: type[T], content: Mapping[str, Any]) -> T:
    """Make a configuration from the content of a TOML file with today's names.

    Raises:
        ConfigError: A key is unknown, or a value has the wrong type or range.
    """
    return _build(kind, content, where="")


def merge(content: Mapping[str, Any], *changes: Mapping[str, Any]) -> dict[str, Any]:
    """The content with changes: sections are merged key by key, later changes replace earlier ones.

    Raises:
        ConfigError: A change treats a value as a section.
    """
    merged = {name: dict(value) if isinstance(value, Mapping) else value for name, value in content.items()}
    for change in changes:
        for name, value in change.items():
            if not isinstance(value, Mapping):
                merged[name] = value
                continue
            section = merged.setdefault(name, {})
            if not isinstance(section, dict):
                raise ConfigError(f"{name!r} is a value, not a section.")
            section.update(value)
    return merged


def apply_changes(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`merge`, where the length of a run in the changes replaces the former one, be it in steps or in epochs.

    Raises:
        ConfigError: The changes give the length in steps and in epochs, or treat a value as a section.
    """
    loop = changes.get("loop", {})
    merged = merge(content, changes)
    if not isinstance(loop, Mapping):
        return merged  # an error of `build_config`
    steps, epochs = loop.get("steps"), loop.get("epochs")
    if steps and epochs:
        raise ConfigError(
            f"loop.steps={steps} and loop.epochs={epochs} both give the length of the run; remove one of them."
        )
    if steps:
        merged["loop"]["epochs"] = 0.0
    return _without_unused(merged)


def _without_unused(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content without loop.steps if loop.epochs gives the length of the run."""
    loop = content.get("loop")
    if not isinstance(loop, Mapping) or not loop.get("epochs"):
        return dict(content)
    return {**content, "loop": {key: value for key, value in loop.items() if key != "steps"}}


def with_absolute_paths(config: T, folders: Sequence[Path]) -> T:
    """Make the relative paths of a configuration absolute, so that it means the same in every current folder.

    Args:
        config: A `CoarseConfig` or `DetailConfig`.
        folders: Where a relative path may begin, the most likely first. A path that exists below none stays as it is.
    """
    content = asdict(config)  # pyright: ignore[reportArgumentType]
    return build_config(type(config), _with_absolute_paths(content, folders))


def _with_absolute_paths(content: Mapping[str, Any], folders: Sequence[Path]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for setting in PATHS:
        section, _, key = setting.rpartition(".")
        values = content.get(section, {}) if section else content
        value = values.get(key)
        if isinstance(value, str) and not _is_name(setting, value):
            found = next((str(folder.absolute() / value) for folder in folders if (folder / value).exists()), value)
            changes = merge(changes, {section: {key: found}} if section else {key: found})
    return merge(content, changes)


def _is_name(setting: str, value: str) -> bool:
    """Whether the value of a setting of `PATHS` is no path: a packaged model, kind of weights, address, or nothing."""
    if setting == "model":
        return not value.endswith(".safetensors") and "/" not in value
    return value in {"", "package", "random"} or "://" in value


def current_settings(content: Mapping[str, Any]) -> dict[str, Any]:
    """Translate settings of mien 0.1 to today's names, with a `RenamedSetting` warning for each.

    Raises:
        ConfigError: A setting is given under both names.
    """
    current: dict[str, Any] = {}
    renamed: dict[str, Any] = {}
    for section, values in content.items():
        if not isinstance(values, Mapping):
            current[section] = values
            continue
        for key, value in values.items():
            name = f"{section}.{key}"
            new = _renamed(name)
            target = current if new == name else renamed
            new_section, new_key = new.split(".", 1)
            target.setdefault(new_section, {})[new_key] = _current_value(new, value)
            if new != name and new_key in content.get(new_section, {}):
                raise ConfigError(f"{name!r} is the old name of {new!r}, and both are set; remove {name!r}.")
        if not values:
            current.setdefault(section, {})
    return merge(current, renamed)


def _renamed(name: str) -> str:
    new = RENAMED.get(name, name)
    if new != name:
        _warn(f"setting {name!r} is now called {new!r}; rename it. Version 0.3 of mien will not know the old name.")
    return new


def _current_value(name: str, value: Any) -> Any:
    new = RENAMED_VALUES.get((name, value), value) if isinstance(value, str) else value
    if isinstance(value, str) and new != value:
        _warn(f"{name} = {value!r} is now written {new!r}; change it. Version 0.3 of mien will not know the old value.")
    return new


def _warn(message: str) -> None:
    warnings.warn(message, RenamedSetting, stacklevel=5)


def _change(text: str) -> dict[str, Any]:
    """The content of one `section.key=value`."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text}: write it as section.key=value.")
    if len(text) > _MAX_CHANGE:
        raise ConfigError(f"--set {text[:40]}…: {len(text)} characters; use at most {_MAX_CHANGE}.")
    try:
        parsed = parse_toml(f"value = {value}", text, error=ConfigError)["value"]
    except ConfigError:
        parsed = value.strip()  # words need no quotes on a command line
    *sections, key = name.strip().split(".")
    if len(sections) > 1:
        raise ConfigError(f"--set {text}: {name.strip()} is nested too deep; write it as section.key=value.")
    content: dict[str, Any] = {key: parsed}
    for section in reversed(sections):
        content = {section: content}
    return current_settings(content)


def _build(kind: type[T], content: Mapping[str, Any], *, where: str) -> T:
    hints = get_type_hints(kind)
    known = [f.name for f in fields(kind)]  # pyright: ignore[reportArgumentType]
    values: dict[str, Any] = {}
    for key, value in content.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {where + near[0]!r}?" if near else f"use one of: {', '.join(known)}."
            raise ConfigError(f"{where + key!r} is not a setting; {hint}")
        values[key] = _converted(hints[key], value, f"{where}{key}")
    return kind(**values)


def _converted(wanted: Any, value: Any, name: str) -> Any:
    if is_dataclass(wanted):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name!r} is a section; write [{name}].")
        return _build(wanted, value, where=f"{name}.")  # pyright: ignore[reportArgumentType]
    if get_origin(wanted) is Literal:
        if value not in get_args(wanted):
            raise ConfigError(
                f"{name}={value!r} is unknown: it must be one of {', '.join(map(str, get_args(wanted)))}."
            )
        return value
    if isinstance(value, int | float) and not -_LARGEST <= value <= _LARGEST:
        raise ConfigError(f"{name} is out of range: it must be a finite number of at most {_LARGEST}.")
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        shown = textwrap.shorten(repr(value), 80, placeholder="…")
        raise ConfigError(f"{name}={shown} has the wrong type: it must be of type {wanted.__name__}.")
    return value


def dump(config: object) -> str:
    """Write a configuration as TOML that `load_config` reads back to an equal one."""
    content = _without_unused(asdict(config))  # pyright: ignore[reportArgumentType]
    plain = [f"{k} = {_literal(v)}" for k, v in content.items() if not isinstance(v, dict)]
    sections = [
        "\n".join([f"[{name}]", *(f"{k} = {_literal(v)}" for k, v in section.items())])
        for name, section in content.items()
        if isinstance(section, dict)
    ]
    return "\n\n".join(["\n".join(plain), *sections]) + "\n"


@dataclass(frozen=True)
class SettingChange:
    """A setting that differs between two configurations."""

    name: str
    """Name as section.key."""
    before: str
    """Former value as TOML; "nothing" if it was not set."""


def differences(before: str, after: str, *, folders: Sequence[Path] = ()) -> list[SettingChange]:
    """Compare two texts of `dump`; names of mien 0.1 count as today's.

    Args:
        before: The former text.
        after: The present text.
        folders: Where relative paths of both begin, as in `with_absolute_paths`.

    Raises:
        ConfigError: A text is not TOML.
    """
    old, new = _flat(before, folders), _flat(after, folders)
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    return [SettingChange(name, old.get(name, "nothing")) for name in names]


def _flat(text: str, folders: Sequence[Path]) -> dict[str, str]:
    current = current_settings(parse_toml(text, "the configuration", error=ConfigError))
    content = _with_absolute_paths(_without_unused(current), folders)
    return ADDED | {
        f"{name}.{key}" if isinstance(value, dict) else name: _literal(single)
        for name, value in content.items()
        for key, single in (value.items() if isinstance(value, dict) else [(name, value)])
    }


def _literal(value: str | int | float | bool) -> str:
    # TOML writes strings, numbers and Booleans as JSON does, and reads 1e-05.
    return json.dumps(value, ensure_ascii=False)
