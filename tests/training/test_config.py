"""Configurations: reading and writing, names of version 0.1, and error messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from mien.errors import ConfigError, RenamedSetting
from mien.training.config import CoarseConfig, DetailConfig, LoopSettings
from mien.training.config_file import RENAMED, SettingChange, differences, dump, load_config, load_record

CONFIGS = Path(__file__).parent.parent.parent / "configs"


@pytest.mark.parametrize(
    ("name", "kind"),
    [("paper_base", CoarseConfig), ("paper_detail", DetailConfig), ("ablation_no_regularizers", DetailConfig)],
)
def test_the_repositorys_configurations_survive_a_round_trip(name: str, kind: type, tmp_path: Path) -> None:
    config = load_config(kind, CONFIGS / f"{name}.toml")
    written = tmp_path / "config.toml"
    written.write_text(dump(config), encoding="utf-8")
    assert load_config(kind, written) == config


def test_the_papers_configuration_is_the_papers() -> None:
    config = load_config(CoarseConfig, CONFIGS / "paper_base.toml")
    assert (config.loss.photometric, config.loss.landmark, config.loss.identity) == (1, 1, 20)
    assert (config.encoder.backbone, config.optimizer.learning_rate, config.loop.epochs) == ("resnet50", 3e-5, 20)
    assert config.optimizer.final_rate == 1
    assert config.data.synthetic_share == 0


OLD = {
    "encoder.points": "true", "encoder.look": "true", "encoder.looks": "3", "encoder.learn": '"second look"',
    "data.drawn_faces": "7", "loss.pixel": "2.5", "loss.recognition": "3.5",
}  # fmt: skip
OLD_DETAIL = {"base.source": '"encoder"', "base.pose_error": "0.5", "relief.fold_strength": "2.5", "loss.pixel": "1.5"}


def toml_of(settings: dict[str, str]) -> str:
    return "\n".join(f"{name} = {value}" for name, value in settings.items())


@pytest.mark.parametrize("way", ["file", "--set"])
def test_names_of_version_0_1_are_accepted_with_a_warning_that_names_the_new_one(way: str, tmp_path: Path) -> None:
    def load(kind: type, settings: dict[str, str]) -> object:
        path = tmp_path / "old.toml"
        path.write_text(toml_of(settings if way == "file" else {}), encoding="utf-8")
        changes = [f"{name}={value}" for name, value in settings.items()] if way == "--set" else []
        with pytest.warns(RenamedSetting) as warned:
            config = load_config(kind, path, changes=changes)
        messages = [str(warning.message) for warning in warned]
        for name in settings.keys() & RENAMED.keys():
            assert any(f"{name!r} is now called {RENAMED[name]!r}" in message for message in messages), name
        return config

    config = load(CoarseConfig, OLD)
    assert isinstance(config, CoarseConfig)
    assert (config.encoder.refiner, config.encoder.refine_steps, config.encoder.learn) == (True, 3, "refiner")
    assert (config.data.synthetic_faces, config.loss.photometric, config.loss.identity) == (7, 2.5, 3.5)
    detail = load(DetailConfig, OLD_DETAIL)
    assert isinstance(detail, DetailConfig)
    assert (detail.coarse.source, detail.coarse.pose_error) == ("encoder", 0.5)
    assert (detail.relief.wrinkle_strength, detail.loss.photometric) == (2.5, 1.5)


def test_a_change_replaces_the_files_setting_under_either_name(tmp_path: Path) -> None:
    path = tmp_path / "new.toml"
    path.write_text("[loss]\nphotometric = 4.0", encoding="utf-8")
    with pytest.warns(RenamedSetting):
        assert load_config(CoarseConfig, path, changes=["loss.pixel=0.5"]).loss.photometric == 0.5
    path.write_text("[loss]\nphotometric = 4.0\npixel = 3.0", encoding="utf-8")
    with (
        pytest.warns(RenamedSetting),
        pytest.raises(ConfigError, match=r"'loss\.pixel' is the old name of 'loss\.photometric', and both are set"),
    ):
        load_config(CoarseConfig, path)


def test_old_and_new_names_are_no_difference() -> None:
    with pytest.warns(RenamedSetting):
        assert differences("[loss]\npixel = 1.0", "[loss]\nphotometric = 1.0") == []


def test_changes_are_read_as_toml_or_as_words() -> None:
    changes = ["loop.steps=7", "optimizer.learning_rate=2e-4", "encoder.backbone=resnet50", "data.augment=false"]
    config = load_config(CoarseConfig, None, changes=changes)
    assert config.loop.steps == 7
    assert config.optimizer.learning_rate == 2e-4
    assert config.encoder.backbone == "resnet50"
    assert config.data.augment is False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("loop.batchsize=3", "did you mean 'loop.batch_size'"),
        ("optimiser.learning_rate=1", "did you mean 'optimizer'"),
        ("loop.steps=many", "must be of type int"),
        ("loop.steps=true", "must be of type int"),
        ("encoder.backbone=vgg", "must be one of resnet50, efficientnet_lite0"),
        ("data.synthetic_share=1.5", r"data.synthetic_share=1.5 is out of range: it must lie in \[0, 1\]"),
        ("loop.batch_size=0", "must be at least 1"),
        ("encoder.refiner=true", "needs encoder.points = true"),
        ("encoder.learn=refiner", "needs encoder.refiner = true"),
        ("encoder.refine_steps=2", "needs encoder.refiner = true"),
        ("encoder.refine_steps=0", "at least 1"),
        ("encoder.refine_from=landmarks", "needs data.fits = true and data.synthetic_share = 0"),
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
        ("model.name=x", "has the wrong type: it must be of type str"),
    ],
)
def test_mistakes_are_named(change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(CoarseConfig, None, changes=[change])


def test_a_file_that_is_not_toml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("[loop\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"broken.toml cannot be read as TOML"):
        load_config(CoarseConfig, path)


def test_differences_have_the_former_value() -> None:
    before = load_config(CoarseConfig, None)
    after = load_config(CoarseConfig, None, changes=["loop.steps=7", "model=other"])
    assert differences(dump(before), dump(before) + "# a comment") == []
    assert differences(dump(before), dump(after)) == [
        SettingChange("loop.steps", str(before.loop.steps)),
        SettingChange("model", '"mien-face"'),
    ]
    assert differences("", "[loop]\nsteps = 3") == [SettingChange("loop.steps", "nothing")]


def loop_of(tmp_path: Path, file: str, *changes: str) -> tuple[int, float]:
    path = tmp_path / "config.toml"
    path.write_text(f"[loop]\n{file}\n", encoding="utf-8")
    loop = load_config(CoarseConfig, path, changes=changes).loop
    return loop.steps, loop.epochs


def test_the_length_of_a_run_is_given_once_and_the_command_line_replaces_the_files(tmp_path: Path) -> None:
    assert loop_of(tmp_path, "epochs = 2.5") == (LoopSettings.steps, 2.5)
    assert loop_of(tmp_path, "epochs = 2.5", "loop.steps=7") == (7, 0)
    assert loop_of(tmp_path, "steps = 7", "loop.epochs=2.5") == (LoopSettings.steps, 2.5)
    assert loop_of(tmp_path, "steps = 7\nepochs = 0.0", "loop.seed=1") == (7, 0)
    for file, changes in (("steps = 7\nepochs = 2.0", ()), ("", ("loop.steps=1000", "loop.epochs=2"))):
        with pytest.raises(ConfigError, match=r"loop\.steps=\d+ and loop\.epochs=2(\.0)? both give the length"):
            loop_of(tmp_path, file, *changes)
    with pytest.raises(ConfigError, match=r"loop\.steps=7 and loop\.epochs=2 both give the length"):
        CoarseConfig(loop=LoopSettings(steps=7, epochs=2.0))


def test_a_record_of_an_earlier_version_may_have_steps_beside_epochs(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    new = load_config(CoarseConfig, None, changes=["loop.epochs=3"])
    old = dump(new).replace("epochs = 3.0", "steps = 500\nepochs = 3.0")
    path.write_text(old, encoding="utf-8")
    assert load_record(CoarseConfig, path) == new
    assert differences(old, dump(new)) == []
