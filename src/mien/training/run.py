"""From a configuration to a run and back: what `mien train` and `mien report` do, for either branch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from mien.errors import BackendUnavailable, ConfigError, FormatError
from mien.io.files import write_whole, writing
from mien.morphable import MorphableModel, load_model
from mien.networks import DetailNetwork, FaceEncoder, load_detail, load_encoder, save_detail, save_encoder
from mien.perception import FaceMesh, IdentityNetwork
from mien.training.coarse import CoarseObjective, make_encoder
from mien.training.config import BaseConfig, DataSettings, DetailConfig, LoopSettings, dump, load_config
from mien.training.data.batch import FaceBatch, join_batches
from mien.training.data.photos import PhotoFaces
from mien.training.data.source import FaceSource, SyntheticStream
from mien.training.data.store import FaceStore, Split
from mien.training.detail import DetailObjective, make_detail_network
from mien.training.loop import RunSettings, steps_of, train
from mien.training.run_folder import CONFIG_FILE, RunInputs
from mien.training.synthetic.detailed_faces import VIEW, DetailedFaces
from mien.training.synthetic.faces import SyntheticFaces
from mien.training.synthetic.population import SkinBank
from mien.training.synthetic.relief import ReliefSettings
from mien.training.synthetic.store import StoredSyntheticFaces

ENCODER_FILE, DETAIL_FILE = "encoder.safetensors", "detail.safetensors"
HELD_OUT_SEEDS: dict[Split, int] = {"validation": 1_000_003, "test": 2_000_003}
"""Added to the run's seed for drawn faces that it does not train on, and for which of its photos are shown."""
VALIDATION_FACES = 48
C = TypeVar("C", BaseConfig, DetailConfig)


def train_base(config: BaseConfig, *, store: str | None, run: Path, resume: bool) -> Path | None:
    """Train the base branch and write RUN/encoder.safetensors; raises what `train` raises.

    Of several processes the first returns the file's path, the others None.
    """
    torch.manual_seed(config.loop.seed)
    model = load_model(config.model)
    encoder = make_encoder(config.encoder, model)
    objective = make_objective(config, encoder, model, store=store)
    source = make_source(config, load_model(config.model), store=store)  # the objective's model is on the run's device
    kept = train(objective, source, _settings(config, model, source, run=run, resume=resume))
    if not isinstance(kept, FaceEncoder):
        return None
    return _write(run / ENCODER_FILE, lambda path: save_encoder(kept, path, notes=_notes(config.loop, source)))


def train_detail(config: DetailConfig, *, base: str | Path, store: str | None, run: Path, resume: bool) -> Path | None:
    """Train the augmented branch over a frozen encoder and write RUN/detail.safetensors; raises what `train` raises.

    `base` is a finished run of the base branch, an encoder's file, or the packaged encoder's name. Of several
    processes the first returns the file's path, the others None.
    """
    torch.manual_seed(config.loop.seed)
    model = load_model(config.model)
    encoder = _base_encoder(model, base)
    network = make_detail_network(config.network, model)
    objective = make_detail_objective(config, network, encoder, model, store=store)
    source = make_detail_source(config, load_model(config.model), store=store)
    kept = train(objective, source, _settings(config, model, source, encoder=encoder, run=run, resume=resume))
    if not isinstance(kept, DetailNetwork):
        return None
    # The run keeps the encoder that its maps lie over, whatever becomes of the base run.
    _write(run / ENCODER_FILE, lambda path: save_encoder(encoder, path, notes={}))
    return _write(run / DETAIL_FILE, lambda path: save_detail(kept, path, notes=_notes(config.loop, source)))


def _write(path: Path, save: Callable[[Path], None]) -> Path:
    with writing(path, advice="free some space and go on with --resume"):
        write_whole(path, save)
    return path


def _base_encoder(model: MorphableModel, base: str | Path) -> FaceEncoder:
    folder = Path(base)
    return load_encoder(model, folder / ENCODER_FILE if folder.is_dir() else base)


def _settings(
    config: BaseConfig | DetailConfig,
    model: MorphableModel,
    source: FaceSource,
    *,
    encoder: FaceEncoder | None = None,
    run: Path,
    resume: bool,
) -> RunSettings:
    inputs = RunInputs(
        photos="" if source.photographed is None else source.photographed.store.fingerprint,
        drawn=source.drawn.fingerprint if isinstance(source.drawn, StoredSyntheticFaces) else "",
        encoder="" if encoder is None else _fingerprint(encoder),
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


def _fingerprint(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _device(loop: LoopSettings) -> torch.device:
    if loop.device == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailable("loop.device is cuda, and this PyTorch sees no CUDA device; set it to cpu.")
    own = int(os.environ.get("LOCAL_RANK", "0"))  # as torchrun says
    return torch.device("cuda", own) if loop.device == "cuda" else torch.device("cpu")


def _notes(loop: LoopSettings, source: FaceSource) -> dict[str, str]:
    return {"steps": str(steps_of(loop, source)), "seed": str(loop.seed)}


def make_objective(
    config: BaseConfig, encoder: FaceEncoder, model: MorphableModel, *, store: str | None
) -> CoarseObjective:
    """The losses of a configuration, validated on faces that its source does not give."""
    return CoarseObjective(
        encoder,
        model,
        weights=config.loss,
        recognition=IdentityNetwork.from_assets() if config.loss.recognition else None,
        validation=held_out_faces(config, model, store=store, split="validation"),
        device=_device(config.loop),
    )


def make_detail_objective(
    config: DetailConfig, network: DetailNetwork, encoder: FaceEncoder, model: MorphableModel, *, store: str | None
) -> DetailObjective:
    """The losses of a configuration, validated on faces that its source does not give."""
    return DetailObjective(
        network,
        encoder,
        model,
        weights=config.loss,
        base=config.base,
        map_size=config.network.map_size,
        recognition=IdentityNetwork.from_assets() if config.loss.recognition else None,
        validation=held_out_detail_faces(config, model, store=store, split="validation"),
        device=_device(config.loop),
    )


def make_source(config: BaseConfig, model: MorphableModel, *, store: str | None) -> FaceSource:
    """The training batches of a configuration; ConfigError where photos are asked for and no store is given."""
    share, size, seed = config.data.synthetic_share, config.encoder.crop_size, config.loop.seed
    drawn: SyntheticStream | None = None
    if share > 0 and config.data.drawn:
        drawn = StoredSyntheticFaces(Path(config.data.drawn), model, size=size, seed=seed)
    elif share > 0:
        drawn = _drawn(config, model, seed=seed, pool=config.data.drawn_faces)
    photographed = _photographed(config.data, model, store=store, size=size, seed=seed)
    return FaceSource(photographed, drawn, batch_size=config.loop.batch_size, drawn_share=share)


def make_detail_source(config: DetailConfig, model: MorphableModel, *, store: str | None) -> FaceSource:
    """The same for the augmented branch, whose drawn faces have relief and marks that are known."""
    share, size, seed = config.data.synthetic_share, config.network.image_size, config.loop.seed
    drawn = _detailed(config, model, seed=seed, pool=config.data.drawn_faces) if share > 0 else None
    photographed = _photographed(config.data, model, store=store, size=size, seed=seed)
    return FaceSource(photographed, drawn, batch_size=config.loop.batch_size, drawn_share=share)


def held_out_faces(config: BaseConfig, model: MorphableModel, *, store: str | None, split: Split) -> FaceBatch:
    """Faces that no step sees: photographed ones of a split, and drawn ones of another seed."""
    size, seed = config.encoder.crop_size, config.loop.seed + HELD_OUT_SEEDS[split]
    photos = _held_out_photos(model, store=store, split=split, size=size, seed=seed)
    if config.data.synthetic_share > 0 or not photos:
        photos.append(_drawn(config, model, seed=seed, pool=0).batch(range(VALIDATION_FACES)))
    return join_batches(photos)


def held_out_detail_faces(config: DetailConfig, model: MorphableModel, *, store: str | None, split: Split) -> FaceBatch:
    """The same for the augmented branch."""
    size, seed = config.network.image_size, config.loop.seed + HELD_OUT_SEEDS[split]
    photos = _held_out_photos(model, store=store, split=split, size=size, seed=seed)
    if config.data.synthetic_share > 0 or not photos:
        photos.append(_detailed(config, model, seed=seed, pool=0).batch(range(VALIDATION_FACES)))
    return join_batches(photos)


def _photographed(
    data: DataSettings, model: MorphableModel, *, store: str | None, size: int, seed: int
) -> PhotoFaces | None:
    if store is None or data.synthetic_share == 1:
        return None
    faces = FaceStore(store, split="train")
    return PhotoFaces(faces, model, size=size, seed=seed, augment=data.augment, jitter=data.jitter)


def _held_out_photos(
    model: MorphableModel, *, store: str | None, split: Split, size: int, seed: int
) -> list[FaceBatch]:
    faces = None if store is None else FaceStore(store, split=split)
    if faces is None or not len(faces):
        return []
    photographed = PhotoFaces(faces, model, size=size, seed=seed, augment=False)
    return [photographed.batch(range(min(VALIDATION_FACES, len(faces))))]


def _drawn(config: BaseConfig, model: MorphableModel, *, seed: int, pool: int) -> SyntheticFaces:
    data = config.data
    size, skins = config.encoder.crop_size, _skins(data, model)
    mesh = FaceMesh.from_assets() if config.encoder.points else None
    return SyntheticFaces(model, size=size, seed=seed, skins=skins, pool=pool, jitter=data.jitter, mesh=mesh)


def _detailed(config: DetailConfig, model: MorphableModel, *, seed: int, pool: int) -> DetailedFaces:
    data, network, shown = config.data, config.network, config.relief
    usual = ReliefSettings()
    least, most = usual.texture_mm
    relief = replace(
        usual,
        fold_strength=shown.fold_strength,
        fullness_mm=shown.fullness_mm,
        young_share=shown.young_share,
        texture_mm=(least * shown.texture_share, most * shown.texture_share),
    )
    return DetailedFaces(
        model,
        size=network.image_size,
        map_size=network.map_size,
        seed=seed,
        skins=_skins(data, model),
        pool=pool,
        jitter=data.jitter,
        relief=relief,
        view=replace(VIEW, directed_share=shown.directed_share),
        # Otherwise the encoder sees photographs only.
        mesh=FaceMesh.from_assets() if config.base.source == "encoder" else None,
    )


def _skins(data: DataSettings, model: MorphableModel) -> SkinBank | None:
    return SkinBank.load(Path(data.skins), model) if data.skins else None


@dataclass(frozen=True)
class FinishedRun:
    """A run to be reported on."""

    folder: Path
    config: BaseConfig
    model: MorphableModel
    encoder: FaceEncoder


def load_run(folder: Path) -> FinishedRun:
    """Read a run that `train_base` finished; FormatError where there is none."""
    config = _finished_config(folder, BaseConfig, ENCODER_FILE, verb="base")
    model = load_model(config.model)
    return FinishedRun(folder, config, model, load_encoder(model, folder / ENCODER_FILE))


@dataclass(frozen=True)
class FinishedDetailRun:
    """A run of the augmented branch to be reported on."""

    folder: Path
    config: DetailConfig
    model: MorphableModel
    network: DetailNetwork
    encoder: FaceEncoder


def load_detail_run(folder: Path) -> FinishedDetailRun:
    """Read a run that `train_detail` finished; FormatError where there is none."""
    config = _finished_config(folder, DetailConfig, DETAIL_FILE, verb="detail")
    model = load_model(config.model)
    encoder = load_encoder(model, folder / ENCODER_FILE)
    return FinishedDetailRun(folder, config, model, load_detail(model, folder / DETAIL_FILE), encoder)


def _finished_config(folder: Path, kind: type[C], file: str, *, verb: str) -> C:
    path = folder / CONFIG_FILE
    if not path.exists() or not (folder / file).exists():
        raise FormatError(f"{folder} holds no finished run; `mien train {verb} -o {folder} --resume` finishes one.")
    try:
        config = load_config(kind, path)
    except ConfigError as error:
        raise FormatError(f"{path} is of another version of mien: {error}") from error
    # A few faces take no GPU, and the run may have been made on another machine.
    return replace(config, loop=replace(config.loop, device="cpu"))
