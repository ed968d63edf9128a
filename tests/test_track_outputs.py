"""The files of a track: Live Link Face's table and the animated GLB."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from mien.errors import ConfigError
from mien.export import glb_bytes
from mien.export.animation import FaceAnimation, add_animation, quaternions
from mien.export.glb_file import Glb as GlbWriter
from mien.geometry import rotvec_to_rotmat
from mien.morphable.formats.arkit import ARKIT_NAMES
from mien.tracking import Track
from mien.tracking.live_link import BLENDSHAPES, HEADER, head_angles, live_link_csv, timecode
from mien.tracking.outputs import animation_of, parse_track_formats, remove_other_files
from mien.tracking.pictures import key_rows, key_sheet
from tests.glb_reader import Glb
from tests.tiny_face import EXPRESSION_NAMES, tiny_model, tiny_reconstruction

TIMES = np.array([0.0, 0.04, 0.08, 1.0, 1.04])
SEGMENTS = np.array([0, 0, 0, 1, 1])


@cache
def track() -> Track:
    count = len(TIMES)
    turn = torch.tensor([[0.0, 0.1 * k, 0.0] for k in range(count)], dtype=torch.float64)
    expression = np.zeros((count, len(EXPRESSION_NAMES)), np.float32)
    expression[:, 0] = np.linspace(0, 0.4, count)
    gaze = np.zeros((count, 2, 2), np.float32)
    gaze[:, 0, 0], gaze[:, 1, 1] = 0.2, -0.1
    return Track(
        number=0,
        model_name="tiny",
        image_size=(640, 480),
        rate=25.0,
        focal_px=600.0,
        centre_px=np.array([320, 240], np.float32),
        identity=np.zeros(4, np.float32),
        frames=np.array([0, 1, 2, 25, 26]),
        times_s=TIMES,
        segments=SEGMENTS,
        detected=np.ones(count, bool),
        confidence=np.ones(count, np.float32),
        rotation=rotvec_to_rotmat(turn).numpy().astype(np.float32),
        translation=np.stack([0.1 * np.arange(count), 0.2 + 0 * TIMES, 0.8 + 0 * TIMES], 1).astype(np.float32),
        expression=expression,
        gaze=gaze,
        landmarks68=np.zeros((count, 68, 2), np.float32),
        detected68=np.zeros((count, 68, 2), np.float32),
        expression_names=EXPRESSION_NAMES,
        portrait=tiny_reconstruction(detail=False),
        portrait_identities=np.zeros((1, 4), np.float32),
        portrait_frames=np.array([0]),
        portrait_weights=np.ones(1, np.float32),
    )


# From recordings of the app: alexdjulin/LiveLinkFace-CSV-Retarget-For-Motionbuilder on GitHub, anim/alex_rom_3.csv.
RECORDED_START = "Timecode,BlendShapeCount,EyeBlinkLeft,EyeLookDownLeft,EyeLookInLeft,EyeLookOutLeft,EyeLookUpLeft"
RECORDED_JAW = "JawForward,JawRight,JawLeft,JawOpen,MouthClose,MouthFunnel,MouthPucker,MouthRight,MouthLeft"
RECORDED_END = "TongueOut,HeadYaw,HeadPitch,HeadRoll,LeftEyeYaw,LeftEyePitch,LeftEyeRoll,RightEyeYaw,RightEyePitch"


def test_table_has_the_columns_of_live_link_face() -> None:
    header, *rows = live_link_csv(track()).splitlines()
    assert header.startswith(RECORDED_START) and RECORDED_JAW in header and RECORDED_END in header
    assert len(HEADER) == 63 and sorted(n[0].lower() + n[1:] for n in BLENDSHAPES) == sorted(ARKIT_NAMES)
    values = [row.split(",") for row in rows]
    assert [v[0] for v in values] == [
        "00:00:00:00.000", "00:00:00:02.400", "00:00:00:04.800", "00:00:01:00.000", "00:00:01:02.400",
    ]  # fmt: skip
    assert {v[1] for v in values} == {"61"}
    last = dict(zip(HEADER, values[-1], strict=True))
    assert float(last["JawOpen"]) == pytest.approx(0.4) and float(last["CheekPuff"]) == 0
    # The track turns to the left by 0.4, looks to the left by 0.2 and downwards by 0.1.
    assert float(last["HeadYaw"]) == pytest.approx(-0.4) and float(last["HeadRoll"]) == pytest.approx(0)
    assert (float(last["LeftEyeYaw"]), float(last["RightEyePitch"])) == pytest.approx((0.2, 0.1))


def test_timecode_counts_frames_and_their_thousandths() -> None:
    assert timecode(0.208) == "00:00:00:12.480"
    assert timecode(3661.05) == "01:01:01:03.000"
    assert timecode(0.999999) == "00:00:01:00.000"


def test_head_angles_are_yaw_left_pitch_up_roll_left() -> None:
    for axis, angle, expected in ((1, 0.5, (0.5, 0, 0)), (0, -0.3, (0, 0.3, 0)), (2, -0.2, (0, 0, 0.2))):
        turn = torch.zeros(1, 3, dtype=torch.float64)
        turn[0, axis] = angle
        assert head_angles(rotvec_to_rotmat(turn).numpy())[0] == pytest.approx(expected, abs=1e-6)


def test_animation_moves_node_and_weights_at_the_times_of_the_video() -> None:
    glb = Glb(glb_bytes(tiny_reconstruction(detail=False), tiny_model(), animation=animation_of(track())))
    document = glb.document
    (animation,) = document["animations"]
    curves = {}
    for channel in animation["channels"]:
        sampler = animation["samplers"][channel["sampler"]]
        times = glb.accessor(sampler["input"])[:, 0]
        curves[channel["target"]["path"]] = glb.accessor(sampler["output"]).reshape(len(times), -1)
        assert channel["target"]["node"] == 0 and document["nodes"][0]["name"] == "face"
    # A key holds the pose until the next segment begins.
    assert times == pytest.approx([0, 0.04, 0.08, 0.999, 1.0, 1.04], abs=1e-6)
    assert curves["translation"][:, 0] == pytest.approx([0, 0.1, 0.2, 0.2, 0.3, 0.4])
    assert curves["translation"][0, 1:] == pytest.approx([-0.2, -0.8])  # y up, z to the viewer
    assert curves["weights"].shape == (6, 3)
    assert curves["weights"][:, 0] == pytest.approx([0, 0.1, 0.2, 0.2, 0.3, 0.4])
    assert curves["rotation"][-1] == pytest.approx([0, np.sin(0.2), 0, np.cos(0.2)], abs=1e-6)
    camera = document["cameras"][document["nodes"][-1]["camera"]]["perspective"]
    assert camera["yfov"] == pytest.approx(2 * np.arctan(240 / 600))
    for accessor in {s["input"] for s in animation["samplers"]}:
        assert document["accessors"][accessor]["min"] == [0.0]


def test_weights_are_played_by_meshes_without_nodes_below_them() -> None:
    nodes = [{"name": "head", "mesh": 0, "children": [1]}, {"name": "eye", "mesh": 1}]
    meshes = [{"extras": {"targetNames": [name]}} for name in EXPRESSION_NAMES[:2]]
    document = {"nodes": nodes, "meshes": meshes, "scenes": [{"nodes": [0]}]}
    add_animation(document, GlbWriter("sparse"), animation_of(track()))
    nodes, (animation,) = document["nodes"], document["animations"]
    targets = {(c["target"]["path"], c["target"]["node"]) for c in animation["channels"]}
    assert targets == {("translation", 0), ("rotation", 0), ("weights", 1), ("weights", 2)}
    assert nodes[0] == {"name": "head", "children": [2, 1]} and nodes[2]["mesh"] == 0
    assert document["scenes"][0]["nodes"] == [0, 3] and "camera" in nodes[3]


def test_still_files_have_no_animation() -> None:
    document = Glb(glb_bytes(tiny_reconstruction(detail=False), tiny_model())).document
    assert "animations" not in document and "cameras" not in document


def test_quaternions_are_those_of_the_rotations_and_do_not_jump() -> None:
    angles = np.linspace(0, 3 * np.pi, 60)
    axis = np.array([0.6, 0.0, 0.8])
    rotation = rotvec_to_rotmat(torch.from_numpy(angles[:, None] * axis)).numpy()
    found = quaternions(rotation)
    expected = np.concatenate([np.sin(angles / 2)[:, None] * axis, np.cos(angles / 2)[:, None]], axis=1)
    assert np.abs(found - expected).max() < 1e-6


def test_animation_of_a_hold_shorter_than_its_gap() -> None:
    animation = animation_of(track())
    close = FaceAnimation(**{**vars(animation), "times_s": np.array([0, 0.04, 0.08, 0.0805, 0.12])})
    times, rows = close._keys()
    assert (np.diff(times) > 0).all() and rows.tolist() == [0, 1, 2, 2, 3, 4]


def test_key_frames_are_the_most_different_ones() -> None:
    assert key_rows(track(), 2) == [0, 4]
    assert key_rows(track(), 9) == [0, 1, 2, 3, 4]
    panel = np.zeros((256, 256, 3), np.uint8)
    assert key_sheet([[panel, panel]] * 3, [0.0, 1.0, 2.0]).shape[1] > 3 * 256


def test_unknown_formats_are_typed_errors() -> None:
    assert parse_track_formats("csv, glb") == ("glb", "csv")
    with pytest.raises(ConfigError, match="'fbx'"):
        parse_track_formats("glb,fbx")


def test_what_an_earlier_run_has_left_is_removed(tmp_path: Path) -> None:
    results = ("head.glb", "face.glb", "blendshapes.csv", "tracking.npz", "sheet.png")
    for name in [*(f"person{k}/{file}" for k in (0, 1, 2) for file in results), "person2/notes.txt", "overlay.mp4",
                 "persons/head.glb"]:  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    remove_other_files(tmp_path, 1, ("csv", "npz", "overlay"))
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {
        "overlay.mp4", "person0/blendshapes.csv", "person0/tracking.npz", "person2/notes.txt", "persons/head.glb",
    }  # fmt: skip
    assert not (tmp_path / "person1").exists()
    remove_other_files(tmp_path, 1, ("csv",))
    assert not (tmp_path / "overlay.mp4").exists()
    assert not (tmp_path / "person0" / "tracking.npz").exists()
