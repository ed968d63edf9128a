"""The files that `make interop` opens: faces and heads of photos and a phenotype, an ICT head, a converted model.

Usage: python -m tests.interop.inputs OUT DATA

OUT has results of the demo, of portraits if there are any, and of `mien model phenotype`. Prints the folders. DATA has
ict_facekit.npz; without it there is no ICT head.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mien import Reconstruction, load_model
from mien.export import write_mesh, write_reconstruction
from mien.export.model_face import write_model_face
from mien.geometry import rotvec_to_rotmat
from mien.io.result_files import MeshOptions
from mien.morphable import MorphableModel
from mien.morphable.formats import read_model
from mien.registration import complete
from mien.registration.landmark_file import with_landmarks
from mien.tracking import Track
from mien.tracking.outputs import animated_glb
from tests.formats.files import Face, write_bfm2017


def ict_model(data: Path) -> MorphableModel | None:
    source = data / "ict_facekit.npz"
    if not source.is_file():
        print(f"no ICT head: {source} is missing; DATA=FOLDER names another folder", file=sys.stderr)
        return None
    return complete(read_model(source), load_model())


def converted_model(folder: Path) -> MorphableModel:
    """The packaged model as a file of the Basel Face Model 2017, converted back: its expressions are components."""
    packaged = load_model()
    rows = [packaged.identity_basis[:3], packaged.expression_basis[[16, 43]]]
    albedo = packaged.albedo_basis[:2]
    bases = [row.flatten().numpy().astype(float) for rows_of in (*rows, albedo) for row in rows_of]
    deviations = np.array([np.linalg.norm(basis) for basis in bases])
    face = Face(
        mean=packaged.mean.numpy(),
        triangles=packaged.triangles.numpy(),
        directions=np.array(bases) / deviations[:, None],
        deviations=deviations,
        albedo=packaged.albedo_mean.numpy(),
    )
    folder.mkdir(parents=True, exist_ok=True)
    landmarks = folder / "landmarks.txt"
    landmarks.write_text("".join(f"{number} {vertex}\n" for number, vertex in enumerate(packaged.landmarks68.tolist())))
    source = read_model(write_bfm2017(folder / "bfm2017.h5", face))
    return complete(with_landmarks(source, landmarks), packaged)


def off_centre(face: Reconstruction) -> Reconstruction:
    """The face before another camera: off-centre, oblong, with a scale of 1.25. Wrong signs and sides show there."""
    size, centre, scale = (700, 520), np.array([310.0, 215.0], np.float32), 1.25
    xy = face.xy + centre - face.centre_px
    return replace(
        face,
        image_size=size,
        centre_px=centre,
        xy=xy,
        landmarks68=xy[face.landmarks68_vertices],
        scale=scale,
        vertices_model=face.vertices_model / np.float32(scale),
    )


def main(out: Path, data: Path) -> None:
    models = {"ict": ict_model(data), "converted": converted_model(out / "model")}
    folders = [(out / "astronaut" / "face0", load_model()), (out / "phenotype", load_model())]
    folders += [(folder, load_model()) for folder in sorted((out / "portraits").glob("*/face0"))]
    for name, model in models.items():
        if model is not None:
            write_model_face(torch.zeros(model.counts[0]), model, out / name)
            folders.append((out / name, model))
    for folder, model in folders:
        face = Reconstruction.load(folder)
        write_files(face, model, folder, parts="face" if folder.name in models else "face,head")
    moved = off_centre(Reconstruction.load(folders[0][0]))
    write_files(moved, load_model(), out / "off_centre", parts="face,head")
    write_motion(Reconstruction.load(folders[0][0]), load_model(), out / "motion")
    # The folders of the table; the recipes use the first and off_centre, and motion has a script of its own.
    for folder, _ in folders:
        print(folder)


def write_motion(face: Reconstruction, model: MorphableModel, folder: Path) -> None:
    """The head of a face with known curves: a turn, a nod, a walk and changing expressions, with a cut after 2 s."""
    count = 100
    times = np.arange(count) / 25 + 0.004 * np.sin(np.arange(count))  # a variable frame rate
    turn = np.stack([0.2 * np.sin(2 * times), 0.5 * np.sin(1.1 * times), 0.1 * np.cos(times)], axis=1)
    position = np.stack([0.05 * np.sin(times), 0.02 * times, 0.8 - 0.03 * times], axis=1)
    phases = np.arange(model.counts[1])
    expression = 0.5 + 0.5 * np.sin(3 * times[:, None] + phases)
    still = np.zeros((count, 68, 2), np.float32)
    track = Track(
        number=0,
        model_name=face.model_name,
        image_size=(1280, 720),
        rate=25.0,
        focal_px=1250.0,
        centre_px=np.array([640, 360], np.float32),
        identity=face.identity,
        frames=np.arange(count),
        times_s=times,
        segments=(times > 2).astype(np.int64),
        detected=np.ones(count, bool),
        confidence=np.ones(count, np.float32),
        rotation=rotvec_to_rotmat(torch.from_numpy(turn)).numpy().astype(np.float32),
        translation=position.astype(np.float32),
        expression=expression.astype(np.float32),
        gaze=np.zeros((count, 2, 2), np.float32),
        landmarks68=still,
        detected68=still,
        expression_names=model.expression_names,
        portrait=face,
        portrait_identities=face.identity[None],
        portrait_frames=np.array([0]),
        portrait_weights=np.ones(1, np.float32),
    )
    folder.mkdir(parents=True, exist_ok=True)
    track.save(folder)
    name, content = animated_glb(track, model)
    (folder / name).write_bytes(content)


def write_files(face: Reconstruction, model: MorphableModel, folder: Path, *, parts: str) -> None:
    write_reconstruction(face, model, None, folder, "glb,obj,npz,json", parts=parts)
    for part in parts.split(","):
        write_mesh(face, model, folder / f"{part}_dense.glb", MeshOptions.parsed(part, morphs="dense"))
        write_mesh(face, model, folder / f"{part}_camera.glb", MeshOptions.parsed(part, embed_camera=True))
    if "head" in parts:
        write_mesh(face, model, folder / "head.vrm")
        write_mesh(face, model, folder / "head.usdz", MeshOptions.parsed("head"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
