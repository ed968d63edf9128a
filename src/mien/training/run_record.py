"""Record of a run in its folder: what it was started with, and which settings may change when it is resumed.

RUN/config.toml    the resolved configuration; comments below it list changes and the checkpoint they were made at
RUN/inputs.json    hashes of inputs that the configuration only names, see `RunInputs`
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from mien.errors import ConfigError
from mien.io.files import write_text, writing
from mien.io.reading import read_json, read_text
from mien.training.config_file import differences

CONFIG_FILE, INPUTS_FILE = "config.toml", "inputs.json"
ADJUSTABLE = frozenset(
    {
        "loop.checkpoint_every",
        "loop.epochs",
        "loop.keep_checkpoints",
        "loop.log_every",
        "loop.sheet_every",
        "loop.steps",
        "loop.threads",
        "loop.validate_every",
        "loop.workers",
        "optimizer.clip_norm",
        "optimizer.learning_rate",
    }
)
"""Settings that may change on resume: the length and the intervals of a run, and those that help a diverged run."""
HISTORY = "# until "
OLD_INPUTS = {"drawn": "synthetic"}
"""Keys of inputs.json in mien 0.1, and today's."""


@dataclass(frozen=True)
class RunInputs:
    """Hashes of a run's inputs; empty for an input that it does not have."""

    photos: str = ""
    """Of the index of the photo store (`--data`)."""
    synthetic: str = ""
    """Of the plan of the store of synthetic faces (`data.synthetic`)."""
    encoder: str = ""
    """Of the weights of the frozen encoder (`mien train detail --coarse`)."""
    precision: str = ""
    """The precision that "auto" was resolved to where the run was started."""


def likely_starts(folder: Path) -> list[Path]:
    """Where a run may have been started, for `with_absolute_paths`.

    Today's records have absolute paths. Older ones have them as they were typed, relative to the folder in which the
    run was started, usually a parent of the run's folder.
    """
    return [*folder.absolute().parents, Path()]


def recorded_precision(folder: Path) -> str | None:
    """The precision that a run was started with; None if the folder holds no run."""
    return None if not (folder / CONFIG_FILE).exists() else _inputs(folder)["precision"]


def open_run(folder: Path, config_text: str, inputs: RunInputs, *, resume: bool, reached: str) -> None:
    """Start a run, or check that it may be resumed with this configuration and these inputs.

    Args:
        folder: Folder of the run.
        config_text: The resolved configuration.
        inputs: Hashes of the inputs.
        resume: Whether the folder may hold a run.
        reached: Name of the checkpoint that the run continues from.

    Raises:
        ConfigError: The folder is in use, the inputs differ, or settings differ that are not in `ADJUSTABLE`.
        OutputError: The folder cannot be written.
    """
    path = folder / CONFIG_FILE
    text = config_text
    if path.exists():
        if not resume:
            raise ConfigError(f"{folder} already holds a run; continue it with --resume, or choose another folder.")
        text += _history(folder, config_text, inputs, reached=reached)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / INPUTS_FILE, json.dumps(asdict(inputs), indent=1))
        write_text(path, text)  # written last: a folder with this file holds a run


def _history(folder: Path, config_text: str, inputs: RunInputs, *, reached: str) -> str:
    """The comments of the resumed run's configuration."""
    path = folder / CONFIG_FILE
    before = read_text(path, advice="start a new run in another folder", error=ConfigError)
    try:
        # The paths of `config_text` were typed here, so those of the record probably were, too.
        changes = differences(before, config_text, folders=[Path(), *likely_starts(folder)])
    except ConfigError as error:
        raise ConfigError(f"{path} is damaged ({error}); start a new run in another folder.") from error
    fixed = [change.name for change in changes if change.name not in ADJUSTABLE]
    if fixed:
        raise ConfigError(
            f"{folder} was started with another configuration, see {path}: {', '.join(fixed)} cannot change on resume. "
            "Use the former values, or start a new run in another folder."
        )
    _check_inputs(folder, inputs)
    lines = [line for line in before.splitlines() if line.startswith(HISTORY)]
    lines += [f"{HISTORY}{reached}: {change.name} = {change.before}" for change in changes]
    return "".join(f"\n{line}" for line in lines) + ("\n" if lines else "")


def _check_inputs(folder: Path, inputs: RunInputs) -> None:
    recorded = _inputs(folder)
    changed = [
        f"{name} ({_short(value)} now, {_short(recorded[name])} in {INPUTS_FILE})"
        for name, value in asdict(inputs).items()
        if recorded[name] != value
    ]
    if changed:
        raise ConfigError(
            f"{folder} was started with other contents of: {', '.join(changed)}. Use the former inputs, or start a new "
            "run in another folder."
        )


def _short(value: str) -> str:
    """The beginning of a hash, enough to compare it; "none" for an input that a run does not have."""
    return value[:12] or "none"


def _inputs(folder: Path) -> dict[str, str]:
    path = folder / INPUTS_FILE
    advice = "the run's inputs cannot be checked, so start a new run in another folder"
    recorded = read_json(path, dict[str, str], advice=advice, error=ConfigError)
    return {**asdict(RunInputs()), **{str(OLD_INPUTS.get(name, name)): value for name, value in recorded.items()}}
