"""Damaged files of every kind that mien reads: flipped, cut, repeated and inserted bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from PIL import Image, features

from mien.errors import MienError
from mien.io.photo import read_photo
from mien.morphable import load_model
from mien.networks import load_encoder
from mien.result import Reconstruction
from mien.training.checkpoint import checkpoints, load_checkpoint, newest_checkpoint
from mien.training.config import CoarseConfig
from mien.training.config_file import load_config, load_record
from mien.training.data.prepare import list_photos
from mien.training.data.store import FaceStore
from mien.training.optimization import initial_state
from mien.training.recipe import load_recipe
from mien.training.run import load_run, make_coarse_objective
from mien.training.run_record import recorded_precision
from mien.training.synthetic.population import SkinBank
from mien.training.synthetic.store import StoredSyntheticFaces
from tests.chaos.outcome import Tally
from tests.formats.targets import TARGETS

READ_LIMIT_S = 20
_RECIPES = Path(__file__).parents[2] / "configs"


@dataclass(frozen=True)
class Kind:
    """A kind of file: a whole one, and what reads it."""

    name: str
    path: Path
    read: Callable[[], object]
    share: float = 1.0
    """Its tries, as a share of those of the fast kinds."""
    checked: bool = False
    """Whether hashes protect it: then a damaged file must not be taken for a whole one."""


def kinds(folder: Path, outputs: dict[str, Path], inputs: Path) -> Iterator[Kind]:
    """All kinds of files.

    Args:
        folder: Where files are made.
        outputs: Finished outputs of the commands, by name; they are damaged and restored.
        inputs: The inputs of the commands.
    """
    yield from _photos(folder)
    face, model_file, run = outputs["reconstruct"] / "0" / "face0", inputs / "tiny.safetensors", outputs["train"]
    model = load_model(model_file)
    for name in ("reconstruction.npz", "coefficients.json"):
        yield Kind(f"result {name}", face / name, lambda: Reconstruction.load(face))
    yield Kind("model", model_file, lambda: load_model(model_file))
    yield Kind("encoder", run / "encoder.safetensors", lambda: load_encoder(model, run / "encoder.safetensors"), 0.2)
    store = outputs["prepare"]
    yield Kind("photo store index", store / "index.json", lambda: FaceStore(str(store)))
    shard = next(store.glob("*.tar"))
    yield Kind("photo store shard", shard, lambda: [FaceStore(str(store))[k] for k in range(2)])
    faces = outputs["draw"]
    for path in (faces / "drawn.json", next(faces.glob("*.safetensors"))):
        yield Kind(
            f"synthetic store {path.suffix}",
            path,
            lambda: StoredSyntheticFaces(faces, model, size=32, seed=0).batch(range(6)),
        )
    skins = folder / "skins.safetensors"
    SkinBank(torch.zeros(2, model.counts[2]), torch.zeros(2, len(model.mean), 3)).save(skins, model)
    yield Kind("skins", skins, lambda: SkinBank.load(skins, model))
    for name in ("config.toml", "inputs.json", "saved.json"):
        yield Kind(f"run {name}", run / name, lambda: (load_record(CoarseConfig, run / "config.toml"), _resume(run)))
    yield Kind("finished run", run / "config.toml", lambda: load_run(run), 0.1)
    yield from _checkpoints(run)
    recipe = folder / "recipe.toml"
    recipe.write_bytes((_RECIPES / "packaged_encoder.toml").read_bytes())
    yield Kind("recipe", recipe, lambda: load_recipe(recipe), 0.3)
    settings = folder / "settings.toml"
    settings.write_bytes((run / "config.toml").read_bytes())
    yield Kind("settings", settings, lambda: load_config(CoarseConfig, settings))
    table = folder / "table.csv"
    table.write_text("photo,identity,age\n0.png,anna,30\n1.png,bert,41\n2.png,cara,\n", encoding="utf-8")
    yield Kind("table of photos", table, lambda: list_photos(inputs / "photos", table=table))
    for target in TARGETS.values():
        place = folder / target.name
        place.mkdir()
        (place / target.file).write_bytes(target.wrap(target.honest(place)))
        path = place / target.file
        slow = 0.02 if target.file.endswith(".h5") else 1.0  # each file needs a process
        yield Kind(f"face model {target.name}", path, lambda target=target, path=path: target.read(path), slow)


def _photos(folder: Path) -> Iterator[Kind]:
    noise = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((66, 54))
    formats = ["jpg", "png", "webp", "tif", "bmp", *(["avif"] if features.check("avif") else [])]
    for ending in formats:
        path = folder / f"photo.{ending}"
        picture.save(path)
        yield Kind(f"photo {ending}", path, lambda path=path: read_photo(path))
    deep = folder / "deep.png"
    Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save(deep)
    yield Kind("photo png, 16 bits", deep, lambda: read_photo(deep))


def _checkpoints(run: Path) -> Iterator[Kind]:
    config = load_record(CoarseConfig, run / "config.toml")
    model = load_model(config.model)
    encoder = load_encoder(model, run / "encoder.safetensors").requires_grad_(True)
    objective = make_coarse_objective(config, encoder, model)
    state = initial_state(objective.network, config.optimizer, half=False)
    newest = checkpoints(run)[-1]
    for name, share in (("state.json", 0.2), ("tensors.safetensors", 0.05)):
        yield Kind(
            f"checkpoint {name}",
            newest / name,
            lambda: load_checkpoint(newest, state, model_hash=model.fingerprint),
            share,
            checked=True,
        )


def _resume(run: Path) -> object:
    return recorded_precision(run), newest_checkpoint(run)


def damaged(whole: bytes, rng: random.Random) -> bytes:
    """A file with one to three faults."""
    content = bytearray(whole)
    for _ in range(rng.choice((1, 1, 2, 3))):
        place = rng.randrange(len(content) + 1) if rng.random() < 0.6 else rng.randrange(min(len(content), 400) + 1)
        length = rng.choice((1, 2, 4, 8, 64))
        fault = rng.randrange(6)
        if fault <= 1 and place < len(content):
            content[place] ^= 1 << rng.randrange(8)
        elif fault == 2:
            content[place : place + length] = rng.randbytes(length)
        elif fault == 3:
            del content[place : place + length if rng.random() < 0.5 else None]
        elif fault == 4:
            content[place:place] = content[place : place + length] * rng.choice((1, 2, 100))
        else:
            content[place : place + length] = rng.choice((b"\0", b"9", b"\xff", b"[", b"-")) * length
    return bytes(content)


def damage(kind: Kind, *, tries: int, seed: int) -> Tally:
    """Read damaged files of a kind in a process of its own, so that a crash ends that process alone."""
    tally, number = Tally(f"damaged: {kind.name}"), 0
    whole = kind.path.read_bytes()
    try:
        while number < tries:
            outcomes, crashed = _in_process(kind, whole, range(number, tries), seed)
            for outcome, detail in outcomes:
                tally.add(outcome, detail)
            number += len(outcomes)
            if crashed:
                tally.add("untyped", f"seed {seed}, try {number}: the process ended by {crashed}")
                number += 1
    finally:
        kind.path.write_bytes(whole)
    return tally


def _in_process(kind: Kind, whole: bytes, numbers: range, seed: int) -> tuple[list[tuple[str, str]], str]:
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        os.close(reading)
        with os.fdopen(writing, "w") as results:
            for number in numbers:
                results.write(json.dumps(_read(kind, whole, number, seed)) + "\n")
                results.flush()
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as results:
        outcomes = [tuple(json.loads(line)) for line in results]
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return outcomes, "" if status == 0 else f"signal {-status}"  # pyright: ignore[reportReturnType]


class _TooLongError(BaseException):
    pass


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise _TooLongError


def _read(kind: Kind, whole: bytes, number: int, seed: int) -> tuple[str, str]:
    rng = random.Random(f"{seed}/{kind.name}/{number}")
    content = damaged(whole, rng)
    kind.path.write_bytes(content)
    where = f"seed {seed}, try {number}"
    signal.signal(signal.SIGALRM, _stop)
    signal.alarm(READ_LIMIT_S)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind.read()
    except MienError:
        return "survived", ""
    except _TooLongError:
        return "hung", where
    except BaseException as error:
        return "untyped", f"{where}: {type(error).__name__}: {error}"[:300]
    finally:
        signal.alarm(0)
    return ("silent", where) if kind.checked and content != whole else ("survived", "")
