"""From a configuration to a run and back: what `mien train base` and `mien report base` do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from mien.encoder import FaceEncoder, load_encoder, save_encoder
from mien.errors import ConfigError, FormatError
from mien.morphable import MorphableModel, load_model
from mien.perception import IdentityNetwork
from mien.training.base import BaseObjective, make_encoder
from mien.training.batch import FaceBatch, join_batches
from mien.training.config import BaseConfig, dump, load_config
from mien.training.loop import CONFIG_FILE, RunSettings, train
from mien.training.population import SkinBank
from mien.training.source import FaceSource, PhotographedFaces
from mien.training.store import FaceStore, Split
from mien.training.synthetic import SyntheticFaces

ENCODER_FILE = "encoder.safetensors"
HELD_OUT_SEED = 1_000_003
"""Added to the run's seed for drawn faces that it does not train on."""
VALIDATION_FACES = 48


def train_base(config: BaseConfig, *, store: str | None, run: Path, resume: bool) -> Path | None:
    """Train the base branch and write RUN/encoder.safetensors; raises what `train` raises.

    Of several processes the first returns the file's path, the others None.
    """
    torch.manual_seed(config.loop.seed)
    model = load_model(config.model)
    encoder = make_encoder(config.encoder, model)
    objective = make_objective(config, encoder, model, store=store)
    settings = RunSettings(
        folder=run,
        config_text=dump(config),
        model_hash=model.fingerprint,
        optimizer=config.optimizer,
        loop=config.loop,
        resume=resume,
    )
    kept = train(objective, make_source(config, model, store=store), settings)
    if not isinstance(kept, FaceEncoder):
        return None
    path = run / ENCODER_FILE
    partial = path.with_suffix(".partial")
    save_encoder(kept, partial, notes={"steps": str(config.loop.steps), "seed": str(config.loop.seed)})
    partial.replace(path)
    return path


def make_objective(
    config: BaseConfig, encoder: FaceEncoder, model: MorphableModel, *, store: str | None
) -> BaseObjective:
    """The losses of a configuration, validated on faces that its source does not give."""
    return BaseObjective(
        encoder,
        model,
        weights=config.loss,
        recognition=IdentityNetwork.from_assets() if config.loss.recognition else None,
        validation=held_out_faces(config, model, store=store, split="validation"),
        device=torch.device(config.loop.device),
    )


def make_source(config: BaseConfig, model: MorphableModel, *, store: str | None) -> FaceSource:
    """The training batches of a configuration; ConfigError where photos are asked for and no store is given."""
    share, size, seed = config.data.synthetic_share, config.encoder.image_size, config.loop.seed
    photographed = None
    if store is not None and share < 1:
        faces = FaceStore(store, split="train")
        augment, jitter = config.data.augment, config.data.jitter
        photographed = PhotographedFaces(faces, model, size=size, seed=seed, augment=augment, jitter=jitter)
    drawn = None
    if share > 0:
        pool, jitter = config.data.drawn_faces, config.data.jitter
        drawn = SyntheticFaces(model, size=size, seed=seed, skins=_skins(config, model), pool=pool, jitter=jitter)
    return FaceSource(photographed, drawn, batch_size=config.loop.batch_size, drawn_share=share)


def held_out_faces(config: BaseConfig, model: MorphableModel, *, store: str | None, split: Split) -> FaceBatch:
    """Faces that no step sees: photographed ones of a split, and drawn ones of another seed."""
    size, seed = config.encoder.image_size, config.loop.seed + HELD_OUT_SEED
    batches = []
    if store is not None:
        faces = FaceStore(store, split=split)
        if len(faces):
            photographed = PhotographedFaces(faces, model, size=size, seed=seed, augment=False)
            batches.append(photographed.batch(range(min(VALIDATION_FACES, len(faces)))))
    if config.data.synthetic_share > 0 or not batches:
        drawn = SyntheticFaces(model, size=size, seed=seed, skins=_skins(config, model), jitter=config.data.jitter)
        batches.append(drawn.batch(range(VALIDATION_FACES)))
    return join_batches(batches)


def _skins(config: BaseConfig, model: MorphableModel) -> SkinBank | None:
    return SkinBank.load(Path(config.data.skins), model) if config.data.skins else None


@dataclass(frozen=True)
class FinishedRun:
    """A run to be reported on."""

    folder: Path
    config: BaseConfig
    model: MorphableModel
    encoder: FaceEncoder


def open_run(folder: Path) -> FinishedRun:
    """Read a run that `train_base` finished; FormatError where there is none."""
    path = folder / CONFIG_FILE
    if not path.exists() or not (folder / ENCODER_FILE).exists():
        raise FormatError(f"{folder} holds no finished run; `mien train base -o {folder} --resume` finishes one.")
    try:
        config = load_config(BaseConfig, path)
    except ConfigError as error:
        raise FormatError(f"{path} is of another version of mien: {error}") from error
    model = load_model(config.model)
    return FinishedRun(folder, config, model, load_encoder(model, folder / ENCODER_FILE))
