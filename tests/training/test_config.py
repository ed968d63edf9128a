"""Configurations: what is read is what is written, and mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from mien.errors import ConfigError
from mien.training.config import BaseConfig, SettingChange, differences, dump, load_config

CONFIGS = Path(__file__).parent.parent.parent / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*base*.toml")), ids=lambda p: p.stem)
def test_the_repositorys_configurations_survive_a_round_trip(path: Path, tmp_path: Path) -> None:
    config = load_config(BaseConfig, path)
    written = tmp_path / "config.toml"
    written.write_text(dump(config), encoding="utf-8")
    assert load_config(BaseConfig, written) == config


def test_the_papers_configuration_is_the_papers() -> None:
    config = load_config(BaseConfig, CONFIGS / "paper_base.toml")
    assert (config.loss.pixel, config.loss.landmark, config.loss.recognition) == (1, 1, 20)
    assert (config.encoder.backbone, config.optimizer.learning_rate, config.loop.epochs) == ("resnet50", 3e-5, 20)
    assert config.optimizer.final_rate == 1
    assert config.data.synthetic_share == 0


def test_changes_are_read_as_toml_or_as_words() -> None:
    changes = ["loop.steps=7", "optimizer.learning_rate=2e-4", "encoder.backbone=resnet50", "data.augment=false"]
    config = load_config(BaseConfig, None, changes=changes)
    assert config.loop.steps == 7
    assert config.optimizer.learning_rate == 2e-4
    assert config.encoder.backbone == "resnet50"
    assert config.data.augment is False


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("loop.batchsize=3", "did you mean 'loop.batch_size'"),
        ("optimiser.learning_rate=1", "did you mean 'optimizer'"),
        ("loop.steps=many", "must be of type int"),
        ("loop.steps=true", "must be of type int"),
        ("encoder.backbone=vgg", "must be one of resnet50, efficientnet_lite0"),
        ("data.synthetic_share=1.5", r"must lie in \[0, 1\]"),
        ("loop.batch_size=0", "must be at least 1"),
        ("encoder.refiner=true", "needs encoder.points = true"),
        ("encoder.learn=refiner", "needs encoder.refiner = true"),
        ("encoder.refine_steps=2", "needs encoder.refiner = true"),
        ("encoder.refine_steps=0", "at least 1"),
        ("loop.seed=-1", "must not be negative"),
        ("loop.epochs=-1", "must not be negative"),
        ("optimizer.clip_norm=-1", "must not be negative"),
        ("optimizer.warmup=-1", "must not be negative"),
        ("optimizer.weight_decay=-1", "must not be negative"),
        ("encoder.frozen_blocks=-1", "must not be negative"),
        ("encoder.dropout=1.5", r"must lie in \[0, 1\)"),
        ("loss.render_size=0", "at least 32"),
        ("loop.device=abacus", "must be one of cpu, cuda"),
        ("loop", "section.key=value"),
        ("model.name=x", "not a section|must be of type|section"),
    ],
)
def test_mistakes_are_named(change: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(BaseConfig, None, changes=[change])


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("[loop\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"broken.toml cannot be read as TOML"):
        load_config(BaseConfig, path)


def test_differences_are_named_with_what_was_there() -> None:
    before = load_config(BaseConfig, None)
    after = load_config(BaseConfig, None, changes=["loop.steps=7", "model=other"])
    assert differences(dump(before), dump(before) + "# a comment") == []
    assert differences(dump(before), dump(after)) == [
        SettingChange("loop.steps", str(before.loop.steps)),
        SettingChange("model", '"mien-face"'),
    ]
    assert differences("", "[loop]\nsteps = 3") == [SettingChange("loop.steps", "nothing")]
