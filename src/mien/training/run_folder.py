"""A run's folder: what the run was begun with, and what may be another when it goes on.

RUN/config.toml    the resolved configuration; comments below it tell what was changed at which checkpoint
RUN/inputs.json    what the configuration only names: see `RunInputs`
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from mien.errors import ConfigError
from mien.io.files import write_text, writing
from mien.training.config import differences

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
"""What a run may go on with another value of: how long, how watched, and what a run that diverged needs less of."""
HISTORY = "# until "


@dataclass(frozen=True)
class RunInputs:
    """What a run works on: hashes of contents, empty where it has none."""

    photos: str = ""
    """Of the store's index (`--data`)."""
    drawn: str = ""
    """Of the plan of the drawn store (`data.drawn`)."""
    encoder: str = ""
    """Of the weights that `mien train detail` trains over (`--base`)."""
    precision: str = ""
    """What "auto" came to on the machine where the run was begun."""


def begun_precision(folder: Path) -> str | None:
    """The precision that a run was begun with; None where there is no run."""
    return None if not (folder / CONFIG_FILE).exists() else _inputs(folder)["precision"]


def open_run(folder: Path, config_text: str, inputs: RunInputs, *, resume: bool, reached: str) -> None:
    """Begin a run, or check that it may go on like this; `reached` is the checkpoint that it goes on from.

    ConfigError for a folder in use, for settings that differ in more than ADJUSTABLE and for other inputs,
    OutputError where the folder cannot be written.
    """
    path = folder / CONFIG_FILE
    text = config_text
    if path.exists():
        if not resume:
            raise ConfigError(f"{folder} holds a run already; go on with --resume, or choose another folder.")
        text += _history(folder, config_text, inputs, reached=reached)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / INPUTS_FILE, json.dumps(asdict(inputs), indent=1))
        write_text(path, text)  # last: where it lies, the run is begun


def _history(folder: Path, config_text: str, inputs: RunInputs, *, reached: str) -> str:
    """The comments of the configuration that a run goes on with."""
    path = folder / CONFIG_FILE
    before = path.read_text(encoding="utf-8")
    try:
        changes = differences(before, config_text)
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}); start anew in another folder.") from error
    fixed = [change.name for change in changes if change.name not in ADJUSTABLE]
    if fixed:
        raise ConfigError(
            f"{folder} was begun with another configuration, see {path}: {', '.join(fixed)} cannot be changed on the "
            "way. Set them as they were, or start anew in another folder."
        )
    begun = _inputs(folder)
    moved = [name for name, value in asdict(inputs).items() if begun.get(name) != value]
    if moved:
        raise ConfigError(
            f"{folder} was begun with other contents of: {', '.join(moved)} (hashes in {folder / INPUTS_FILE}). Give "
            "those that it was begun with, or start anew in another folder."
        )
    lines = [line for line in before.splitlines() if line.startswith(HISTORY)]
    lines += [f"{HISTORY}{reached}: {change.name} = {change.before}" for change in changes]
    return "".join(f"\n{line}" for line in lines) + ("\n" if lines else "")


def _inputs(folder: Path) -> dict[str, str]:
    path = folder / INPUTS_FILE
    try:
        return {**asdict(RunInputs()), **json.loads(path.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{path} is missing or damaged ({error}), so nobody knows what the run was begun with; start anew in "
            "another folder."
        ) from error
