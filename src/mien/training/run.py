"""Training runs: from a configuration to a weights file (`mien train`), and finished runs (`mien report`)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from mien.errors import BackendUnavailable, ConfigError, FormatError
from mien.io.files import write_whole, writing
from mien.io.folder_lock import locked_folder
from mien.morphable import MorphableModel, load_model
from mien.networks import DetailNetwork, FaceEncoder, load_detail, load_encoder, save_detail, save_encoder
from mien.networks.weights_file import weights_hash
from mien.perception import IdentityNetwork
from mien.training.coarse import CoarseObjective
from mien.training.coarse_cache import FOLDER as COARSE_FOLDER
from mien.training.coarse_cache import CoarseCache
from mien.training.config import CoarseConfig, DetailConfig, LoopSettings
from mien.training.config_file import dump, load_record, with_absolute_paths
from mien.training.data.photos import PhotoFaces
from mien.training.data.source import FaceSource, Shard
from mien.training.detail import DetailObjective
from mien.training.initial_networks import evaluation_modules, make_detail_network, make_encoder
from mien.training.loop import RunSettings, step_count, train
from mien.training.run_record import CONFIG_FILE, RunInputs, likely_starts
from mien.training.sources import held_out_detail_faces, held_out_faces, make_detail_source, make_source
from mien.training.synthetic.store import StoredSyntheticFaces

ENCODER_FILE, DETAIL_FILE = "encoder.safetensors", "detail.safetensors"
C = TypeVar("C", CoarseConfig, DetailConfig)


def train_coarse(config: CoarseConfig, *, store: str | None, run: Path, resume: bool) -> Path | None:
    """Train the encoder and write RUN/encoder.safetensors.

    Args:
        config: The run.
        store: Store of photos, or None.
        run: Folder of the run.
        resume: Whether to continue from the folder's last checkpoint.

    Returns:
        The encoder's file. With several processes the first one returns it, the others return None.

    Raises:
        MienError: Whatever `train`, `make_encoder`, `make_source` and `held_out_faces` raise.
    """
    config = with_absolute_paths(config, [Path()])
    torch.manual_seed(config.loop.seed)
    device, model = device_of(config.loop), load_model(config.model)
    encoder = make_encoder(config.encoder, model)
    validation = held_out_faces(config, model, store=store, split="validation")
    source = make_source(config, model, store=store)
    objective = make_coarse_objective(config, encoder.to(device), load_model(config.model).to(device))
    settings = _run_settings(config, model, source, run=run, resume=resume)
    with _sole_writer(run):
        trained = train(objective, source, settings, validation=validation.to(device))
    if not isinstance(trained, FaceEncoder):
        return None
    return _write(run / ENCODER_FILE, lambda path: save_encoder(trained, path, notes=_notes(config.loop, source)))


def train_detail(
    config: DetailConfig, *, encoder: str | Path, store: str | None, run: Path, resume: bool
) -> Path | None:
    """Train the detail network over a frozen encoder and write RUN/detail.safetensors.

    Args:
        config: The run.
        encoder: A finished run of `train_coarse`, an encoder's file, or the packaged encoder's name.
        store: Store of photos, or None.
        run: Folder of the run; it also gets a copy of the encoder.
        resume: Whether to continue from the folder's last checkpoint.

    Returns:
        The network's file. With several processes the first one returns it, the others return None.

    Raises:
        MienError: Whatever `train`, `load_encoder`, `make_detail_network`, `make_detail_source` and
            `held_out_detail_faces` raise.
    """
    config = with_absolute_paths(config, [Path()])
    torch.manual_seed(config.loop.seed)
    device, model = device_of(config.loop), load_model(config.model)
    frozen = load_encoder(model, _encoder_file(encoder))
    network = make_detail_network(config.network, model)
    validation = held_out_detail_faces(config, model, store=store, split="validation")
    source = make_detail_source(config, model, store=store)
    settings = _run_settings(config, model, source, encoder=frozen, run=run, resume=resume)
    objective = make_detail_objective(
        config, network.to(device), frozen.to(device), load_model(config.model).to(device)
    )

    def begin(shard: Shard) -> None:
        _keep_coarse(config, source.photos, objective, run, shard)

    with _sole_writer(run):
        trained = train(objective, source, replace(settings, begin=begin), validation=validation.to(device))
    if not isinstance(trained, DetailNetwork):
        return None
    # The run keeps the encoder below its maps, even if the encoder's own run is deleted.
    _write(run / ENCODER_FILE, lambda path: save_encoder(frozen, path, notes={}))
    return _write(run / DETAIL_FILE, lambda path: save_detail(trained, path, notes=_notes(config.loop, source)))


def keeps_coarse(config: DetailConfig) -> bool:
    """Whether a run reconstructs its photos once instead of in every step: augmentation must not change the result.

    Moving and mirroring a crop moves and mirrors its face. Augmentation also changes the colours: "refined" fits light
    and albedo to each crop in any case, but "encoder" is what the encoder predicts from the changed colours.
    """
    return config.coarse.source == "refined" or not config.data.augment


def _keep_coarse(
    config: DetailConfig, photos: PhotoFaces | None, objective: DetailObjective, run: Path, shard: Shard
) -> None:
    if photos is None or photos.fits is not None or not keeps_coarse(config):
        return
    if photos.augment and not photos.symmetric:  # a mirrored crop would need a mirrored face
        return
    cache = CoarseCache(run / COARSE_FOLDER, photos, objective.reconstruct)
    photos.coarse = cache.load(shard, report=lambda message: print(message, file=sys.stderr))


def make_coarse_objective(config: CoarseConfig, encoder: FaceEncoder, model: MorphableModel) -> CoarseObjective:
    """Make the objective of a configuration.

    Args:
        config: The run.
        encoder: The encoder that is trained, on the device of the run.
        model: Its face model, on the same device.
    """
    return CoarseObjective(
        encoder,
        model,
        weights=config.loss,
        recognition=_recognition(config.loss.identity, model),
        refine_steps=config.encoder.refine_steps,
        evaluation_modules=evaluation_modules(encoder, config.encoder),
        same_photos=config.data.synthetic_share == 0 and not config.data.augment,
    )


def make_detail_objective(
    config: DetailConfig, network: DetailNetwork, encoder: FaceEncoder, model: MorphableModel
) -> DetailObjective:
    """Make the objective of a configuration.

    Args:
        config: The run.
        network: The network that is trained, on the device of the run.
        encoder: The frozen encoder, on the same device and in evaluation mode.
        model: Face model, on the same device.
    """
    return DetailObjective(
        network,
        encoder,
        model,
        weights=config.loss,
        coarse=config.coarse,
        map_size=config.network.map_size,
        recognition=_recognition(config.loss.identity, model),
    )


def _recognition(weight: float, model: MorphableModel) -> IdentityNetwork | None:
    return IdentityNetwork.from_assets().to(model.mean.device) if weight else None


def _sole_writer(run: Path) -> AbstractContextManager[None]:
    """Keep other runs out of the folder; of several processes the first one writes."""
    return locked_folder(run) if os.environ.get("RANK", "0") == "0" else nullcontext()  # set by torchrun


def _write(path: Path, save: Callable[[Path], None]) -> Path:
    with writing(path, advice="free some space and continue with --resume"):
        write_whole(path, save)
    return path


def _encoder_file(encoder: str | Path) -> str | Path:
    folder = Path(encoder)
    return folder / ENCODER_FILE if folder.is_dir() else encoder


def _run_settings(
    config: CoarseConfig | DetailConfig,
    model: MorphableModel,
    source: FaceSource,
    *,
    encoder: FaceEncoder | None = None,
    run: Path,
    resume: bool,
) -> RunSettings:
    inputs = RunInputs(
        photos="" if source.photos is None else source.photos.store.fingerprint,
        synthetic=source.synthetic.fingerprint if isinstance(source.synthetic, StoredSyntheticFaces) else "",
        encoder="" if encoder is None else weights_hash(encoder),
    )
    return RunSettings(
        folder=run,
        config_text=dump(config),
        inputs=inputs,
        model_hash=model.fingerprint,
        optimizer=config.optimizer,
        loop=config.loop,
        resume=resume,
    )


def device_of(loop: LoopSettings) -> torch.device:
    """The device of this process.

    Raises:
        BackendUnavailable: `loop.device` is cuda, and PyTorch finds no CUDA device.
    """
    if loop.device == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailable("loop.device=cuda is not available: this PyTorch sees no CUDA device; set it to cpu.")
    rank = int(os.environ.get("LOCAL_RANK", "0"))  # set by torchrun
    return torch.device("cuda", rank) if loop.device == "cuda" else torch.device("cpu")


def _notes(loop: LoopSettings, source: FaceSource) -> dict[str, str]:
    return {"steps": str(step_count(loop, source)), "seed": str(loop.seed)}


@dataclass(frozen=True)
class FinishedRun:
    """A finished run of `mien train coarse`."""

    folder: Path
    config: CoarseConfig
    model: MorphableModel
    encoder: FaceEncoder


def load_run(folder: Path) -> FinishedRun:
    """Read a finished run of `mien train coarse`.

    Raises:
        FormatError: The folder holds no finished run, or one of another version of mien.
    """
    config = _finished_config(folder, CoarseConfig, ENCODER_FILE, verb="coarse")
    model = load_model(config.model)
    return FinishedRun(folder, config, model, load_encoder(model, folder / ENCODER_FILE))


@dataclass(frozen=True)
class FinishedDetailRun:
    """A finished run of `mien train detail`."""

    folder: Path
    config: DetailConfig
    model: MorphableModel
    network: DetailNetwork
    encoder: FaceEncoder
    """The frozen encoder below the maps."""


def load_detail_run(folder: Path) -> FinishedDetailRun:
    """Read a finished run of `mien train detail`.

    Raises:
        FormatError: The folder holds no finished run, or one of another version of mien.
    """
    config = _finished_config(folder, DetailConfig, DETAIL_FILE, verb="detail")
    model = load_model(config.model)
    encoder = load_encoder(model, folder / ENCODER_FILE)
    return FinishedDetailRun(folder, config, model, load_detail(model, folder / DETAIL_FILE), encoder)


def _finished_config(folder: Path, kind: type[C], file: str, *, verb: str) -> C:
    path = folder / CONFIG_FILE
    if not path.exists() or not (folder / file).exists():
        raise FormatError(f"{folder} holds no finished run; `mien train {verb} -o {folder} --resume` finishes one.")
    try:
        config = load_record(kind, path)
    except ConfigError as error:
        raise FormatError(f"{path} belongs to another version of mien: {error}") from error
    config = with_absolute_paths(config, likely_starts(folder))
    # A report needs no GPU, and the run may come from another machine.
    return replace(config, loop=replace(config.loop, device="cpu"))
