"""The faces of a configuration: training batches, and held-out faces for validation and test."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mien.morphable import MorphableModel
from mien.perception import FaceMesh
from mien.training.config import CoarseConfig, DataSettings, DetailConfig
from mien.training.data.batch import FaceBatch, join_batches
from mien.training.data.fits import StoredFit, load_fits
from mien.training.data.photos import PhotoFaces
from mien.training.data.source import FaceSource, SyntheticStream
from mien.training.data.store import FaceStore, Split
from mien.training.synthetic.detailed_faces import DETAIL_VIEW, DetailedFaces
from mien.training.synthetic.faces import SyntheticFaces
from mien.training.synthetic.population import SkinBank
from mien.training.synthetic.relief import ReliefSettings
from mien.training.synthetic.store import StoredSyntheticFaces

HELD_OUT_SEEDS: dict[Split, int] = {"validation": 1_000_003, "test": 2_000_003}
"""Added to the run's seed for held-out synthetic faces and for the choice of held-out photos."""
HELD_OUT_FACES = 48


def make_source(config: CoarseConfig, model: MorphableModel, *, store: str | None) -> FaceSource:
    """Make the training batches for the encoder.

    Args:
        config: The run.
        model: Face model on the CPU, where batches are made.
        store: Store of photos; may be None with `data.synthetic_share` 1.

    Raises:
        ConfigError: The configuration needs photos, and `store` is None.
        FormatError: A store or the file of skins is damaged.
    """
    share, size, seed = config.data.synthetic_share, config.encoder.crop_size, config.loop.seed
    synthetic: SyntheticStream | None = None
    if share > 0 and config.data.synthetic:
        synthetic = StoredSyntheticFaces(Path(config.data.synthetic), model, size=size, seed=seed)
    elif share > 0:
        synthetic = _synthetic_faces(config, model, seed=seed, pool=config.data.synthetic_faces)
    photos = _photo_faces(config.data, model, store=store, size=size, seed=seed)
    return FaceSource(photos, synthetic, batch_size=config.loop.batch_size, synthetic_share=share)


def make_detail_source(config: DetailConfig, model: MorphableModel, *, store: str | None) -> FaceSource:
    """Make the training batches for the detail network: synthetic faces come with ground-truth maps.

    Arguments and errors are those of `make_source`.
    """
    share, size, seed = config.data.synthetic_share, config.network.image_size, config.loop.seed
    synthetic = _detailed_faces(config, model, seed=seed, pool=config.data.synthetic_faces) if share > 0 else None
    photos = _photo_faces(config.data, model, store=store, size=size, seed=seed)
    return FaceSource(photos, synthetic, batch_size=config.loop.batch_size, synthetic_share=share)


def held_out_faces(config: CoarseConfig, model: MorphableModel, *, store: str | None, split: Split) -> FaceBatch:
    """Make faces that no step trains on: photos of a split, and synthetic faces of another seed.

    Args:
        config: The run.
        model: Face model on the CPU.
        store: Store of photos, or None.
        split: "validation" or "test".
    """
    size, seed = config.encoder.crop_size, config.loop.seed + HELD_OUT_SEEDS[split]
    parts = _held_out_photos(config.data, model, store=store, split=split, size=size, seed=seed)
    if config.data.synthetic_share > 0 or not parts:
        parts.append(_synthetic_faces(config, model, seed=seed, pool=0).batch(range(HELD_OUT_FACES)))
    return join_batches(parts)


def held_out_detail_faces(config: DetailConfig, model: MorphableModel, *, store: str | None, split: Split) -> FaceBatch:
    """Make held-out faces for the detail network; arguments are those of `held_out_faces`."""
    size, seed = config.network.image_size, config.loop.seed + HELD_OUT_SEEDS[split]
    parts = _held_out_photos(config.data, model, store=store, split=split, size=size, seed=seed)
    if config.data.synthetic_share > 0 or not parts:
        parts.append(_detailed_faces(config, model, seed=seed, pool=0).batch(range(HELD_OUT_FACES)))
    return join_batches(parts)


def _photo_faces(
    data: DataSettings, model: MorphableModel, *, store: str | None, size: int, seed: int
) -> PhotoFaces | None:
    if store is None or data.synthetic_share == 1:
        return None
    faces = FaceStore(store, split="train")
    fits = _fits(data, model, store)
    return PhotoFaces(
        faces,
        model,
        size=size,
        seed=seed,
        augment=data.augment,
        jitter=data.jitter,
        fits=fits,
        together=data.photos_per_person,
    )


def _fits(data: DataSettings, model: MorphableModel, store: str) -> dict[str, StoredFit] | None:
    return load_fits(Path(store), model) if data.fits else None


def _held_out_photos(
    data: DataSettings, model: MorphableModel, *, store: str | None, split: Split, size: int, seed: int
) -> list[FaceBatch]:
    faces = None if store is None else FaceStore(store, split=split)
    if store is None or faces is None or not len(faces):
        return []
    photos = PhotoFaces(faces, model, size=size, seed=seed, augment=False, fits=_fits(data, model, store))
    return [photos.batch(range(min(HELD_OUT_FACES, len(faces))))]


def _synthetic_faces(config: CoarseConfig, model: MorphableModel, *, seed: int, pool: int) -> SyntheticFaces:
    data = config.data
    size, skins = config.encoder.crop_size, _skins(data, model)
    mesh = FaceMesh.from_assets() if config.encoder.points else None
    return SyntheticFaces(model, size=size, seed=seed, skins=skins, pool=pool, jitter=data.jitter, mesh=mesh)


def _detailed_faces(config: DetailConfig, model: MorphableModel, *, seed: int, pool: int) -> DetailedFaces:
    data, network, changes = config.data, config.network, config.relief
    usual = ReliefSettings()
    least, most = usual.texture_mm
    relief = replace(
        usual,
        wrinkle_strength=changes.wrinkle_strength,
        fullness_mm=changes.fullness_mm,
        young_share=changes.young_share,
        texture_mm=(least * changes.texture_share, most * changes.texture_share),
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
        view=replace(DETAIL_VIEW, directional_share=changes.directed_share),
        # With another source the encoder sees photos only, so points have to be detected in photos only.
        mesh=FaceMesh.from_assets() if config.coarse.source == "encoder" else None,
    )


def _skins(data: DataSettings, model: MorphableModel) -> SkinBank | None:
    return SkinBank.load(Path(data.skins), model) if data.skins else None
