"""Recipes: inheritance of settings, four stages from nothing, and the same bits after a kill."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mien.errors import ConfigError, FormatError
from mien.morphable import load_model
from mien.networks import load_detail, load_encoder
from mien.training import recipe_run
from mien.training.config import CoarseConfig, DetailConfig
from mien.training.recipe import SyntheticStage, load_recipe
from mien.training.recipe_run import run_recipe
from mien.training.run import make_coarse_objective
from mien.training.sources import held_out_faces
from tests.tiny import tiny_model
from tests.training.tiny_data import undo_last_checkpoint, write_model

CONFIGS = Path(__file__).parent.parent.parent / "configs"
RECIPE = """
model = "{model}"

[[stage]]
name = "faces"
kind = "synthetic"
faces = 6
size = 32

[[stage]]
name = "first"
kind = "coarse"
encoder.weights = "random"
encoder.image_size = 32
encoder.points = true
data.synthetic_share = 1.0
data.synthetic = "faces"
loss.photometric = 0.0
loss.identity = 0.0
loss.points = 8.0
loss.vertices = 1.0
optimizer.ema_decay = 0.5
optimizer.warmup = 2
loop.batch_size = 2
loop.workers = 0
loop.threads = 1
loop.checkpoint_every = 1
loop.steps = 2

[[stage]]
name = "second"
kind = "coarse"
optimizer.learning_rate = 5e-4
loop.seed = 4

[[stage]]
name = "detail"
kind = "detail"
network.image_size = 32
network.map_size = 32
network.width = 2
data.synthetic_share = 1.0
data.synthetic_faces = 2
optimizer.ema_decay = 0.0
loop.batch_size = 2
loop.workers = 0
loop.threads = 1
loop.steps = 1
"""


@pytest.fixture(autouse=True)
def _few_held_out_faces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mien.training.sources.HELD_OUT_FACES", 2)


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    model = write_model(tiny_model(), tmp_path / "tiny.safetensors")
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(model=model), encoding="utf-8")
    return path


def run(path: Path, out: Path, **options: Any) -> tuple[Path | None, list[str]]:
    lines: list[str] = []
    return run_recipe(load_recipe(path), out, store=None, report=lines.append, **options), lines


class KilledError(Exception):
    """Takes the place of a kill."""


def test_four_stages_make_both_networks_and_continue_after_a_kill(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One recipe runs through; the other is killed between stages, and in the middle of a stage."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    result, lines = run(recipe_file, whole)
    assert result == whole / "detail.safetensors"
    assert [line.split(":")[0] for line in lines] == ["stage faces", "stage first", "stage second", "stage detail"]
    model = load_model(load_recipe(recipe_file).model)
    load_encoder(model, whole / "encoder.safetensors")
    load_detail(model, whole / "detail.safetensors")
    with (whole / "figures.csv").open(encoding="utf-8", newline="") as file:
        rows = {(row["stage"], row["metric"]): row for row in csv.DictReader(file)}
    assert rows["faces", "faces"]["after"] == "6"
    settings = load_recipe(recipe_file).stage("second").settings
    assert isinstance(settings, CoarseConfig)
    faces = held_out_faces(settings, model, store=None, split="validation")
    first = load_encoder(model, whole / "first" / "encoder.safetensors")
    expected = {
        metric.name: metric.value for metric in make_coarse_objective(settings, first, model).evaluate(first, faces)
    }
    assert float(rows["second", "vertices"]["before"]) == pytest.approx(expected["vertices"], rel=1e-4)
    assert rows["second", "vertices"]["before"] != rows["second", "vertices"]["after"]
    assert ("detail", "relief correlation, fine") in rows or ("detail", "colour error, augmented") in rows

    train = recipe_run.train_coarse
    for calls_before_kill in (0, 1):  # between "faces" and "first"; after "first" has trained, before it is marked
        with monkeypatch.context() as patch:
            calls = iter(range(10))

            def killed(*arguments: Any, calls: Any = calls, limit: int = calls_before_kill, **options: Any) -> Any:
                if next(calls) == limit:
                    if limit:
                        train(*arguments, **options)
                    raise KilledError
                return train(*arguments, **options)

            patch.setattr(recipe_run, "train_coarse", killed)
            with pytest.raises(KilledError):
                run(recipe_file, cut)
    undo_last_checkpoint(cut / "second")
    (cut / "second" / "encoder.safetensors").unlink()
    _, lines = run(recipe_file, cut)
    assert [line.split(":")[0].removeprefix("stage ") for line in lines] == [
        "faces (finished before)", "first (finished before)", "second", "detail",
    ]  # fmt: skip
    for name in ("encoder.safetensors", "detail.safetensors"):
        one, other = load_file(whole / name), load_file(cut / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name
    assert (whole / "figures.csv").read_text() == (cut / "figures.csv").read_text()


def test_a_single_stage_needs_the_stages_before_it(recipe_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="stage 'faces' is not finished; run it before stage 'first'"):
        run(recipe_file, out, only="first")
    result, lines = run(recipe_file, out, only="faces")
    assert result is None
    assert lines == ["stage faces: faces 6"]
    with pytest.raises(ConfigError, match="stage='third' is unknown; use one of: faces, first, second, detail"):
        run(recipe_file, out, only="third")


def test_a_finished_stage_with_other_settings_is_refused(recipe_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(recipe_file, out, only="faces")
    text = recipe_file.read_text(encoding="utf-8")
    recipe_file.write_text(text.replace("faces = 6", "faces = 7"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"stage 'faces' in .* was made with other settings"):
        run(recipe_file, out)
    (out / "faces" / "stage.json").write_text("no JSON", encoding="utf-8")
    with pytest.raises(FormatError, match="delete it to run the stage again"):
        run(recipe_file, out)


def test_stages_inherit_the_settings_of_the_stage_of_their_kind(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    first, second = recipe.stage("first"), recipe.stage("second")
    assert isinstance(first.settings, CoarseConfig)
    assert isinstance(second.settings, CoarseConfig)
    assert (first.start, second.start, recipe.stage("detail").encoder) == ("", "first", "second")
    assert second.settings.loss == first.settings.loss
    assert (second.settings.loop.seed, second.settings.loop.steps) == (4, 2)
    assert second.settings.optimizer.learning_rate == 5e-4


def test_the_packaged_recipes_have_the_stages_that_made_the_packaged_files() -> None:
    encoder = load_recipe(CONFIGS / "packaged_encoder.toml")
    coarse = [stage.settings for stage in encoder.stages if isinstance(stage.settings, CoarseConfig)]
    assert [(c.loop.steps, c.loop.batch_size, c.encoder.refine_steps) for c in coarse] == [
        (2500, 32, 1), (600, 32, 1), (500, 32, 1), (1600, 32, 1), (2000, 32, 1), (2000, 32, 1),
        (4600, 128, 1), (3100, 256, 1), (1800, 256, 2), (3000, 256, 3), (300, 64, 1),
    ]  # fmt: skip
    last = coarse[-1]
    assert (last.encoder.refine_from, last.data.fits, last.data.synthetic_share) == ("landmarks", True, 0.0)
    stores = [s.settings for s in encoder.stages if isinstance(s.settings, SyntheticStage)]
    assert [(s.store, s.faces, s.seed) for s in stores] == [
        ("faces_1", 81920, 21), ("faces_1", 196608, 21), ("faces_2", 61952, 25), ("faces_3", 92160, 29),
    ]  # fmt: skip
    detail = load_recipe(CONFIGS / "packaged_detail.toml")
    settings = [stage.settings for stage in detail.stages if isinstance(stage.settings, DetailConfig)]
    assert [(s.loop.steps, s.data.synthetic_faces, s.loss.texel) for s in settings] == [
        (1500, 1200, 10.0), (700, 1200, 30.0), (1500, 1800, 50.0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'kind = "synthetic"',
            'kind = "drawn"',
            "stage 'faces': kind='drawn' must be one of skins, synthetic, fits",
        ),
        ("faces = 6", "", "stage 'faces': a setting is missing"),
        ("loop.seed = 4", "loop.sed = 4", "stage 'second': 'loop.sed' is not a setting; did you mean 'loop.seed'"),
        ('data.synthetic = "faces"', 'data.synthetic = "other"', "data.synthetic='other' is not a store"),
        ('name = "second"', 'name = "first"', "name='first' must be unique"),
        ('name = "second"', 'name = "../second"', "must be unique and have letters, digits and _ only"),
        ("[[stage]]", "[[stages]]", "at least one \\[\\[stage\\]\\]"),
    ],
)
def test_mistakes_name_their_stage(recipe_file: Path, old: str, new: str, message: str) -> None:
    text = recipe_file.read_text(encoding="utf-8")
    assert old in text
    recipe_file.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_recipe(recipe_file)


def test_a_stage_gives_its_length_in_steps_or_in_epochs(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    stages = ("loop.steps = 7", "loop.epochs = 2.0", "loop.seed = 1", "loop.steps = 3")
    text = "".join(f'[[stage]]\nname = "s{k}"\nkind = "coarse"\n{line}\n' for k, line in enumerate(stages))
    path.write_text(text, encoding="utf-8")
    loops = [stage.settings.loop for stage in load_recipe(path).stages if isinstance(stage.settings, CoarseConfig)]
    assert [(loop.steps, loop.epochs) for loop in loops] == [(7, 0), (1000, 2), (1000, 2), (3, 0)]
    path.write_text(text + "loop.epochs = 1.0\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"stage 's3': loop\.steps=3 and loop\.epochs=1\.0 both give the length"):
        load_recipe(path)
