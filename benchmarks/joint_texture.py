"""The texture of several photos against that of one, in a photo that neither has seen.

    python benchmarks/joint_texture.py --data ../shared/data [--part person|views] [--mode net] [-o out/joint_texture]

*person*: five photos of one person (photos_ccby, "lisa" and "zoom") from different cameras, rooms and distances.
*views*: ICT heads turned by 0, 30, -30 and 60 degrees, each view under another light (benchmarks/joint.py).
Each photo is left out once. Its own reconstruction gives mesh, camera and light; it is drawn with the texture of each
other photo alone, and with the texture of all others together. *Colour* is the root mean square difference to the photo
on visible skin after one factor per channel, since no texture can know the exposure of another photo; *detail* is the
correlation of what is finer than 2 % of the crop, which ghosts and blur lower. OUT has a sheet per photo: the photo,
the best single texture, the joint one, its own, and the joint one from both sides.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mien

# isort: split
import numpy as np
import torch
from ict_heads import HeadPainter, IctModel, sample_heads, save_photograph, simulate_camera
from joint import VIEWS_DEG, _Painted, neutral
from PIL import Image
from torch.nn import functional as F

from mien.camera import Camera
from mien.errors import FaceDoubtful, PhotoLeftOut
from mien.evaluation.paired import paired_difference
from mien.evaluation.report import Environment, markdown_table, write_json
from mien.geometry import rotvec_to_rotmat, vertex_normals
from mien.lighting import shading
from mien.morphable import MorphableModel
from mien.perception import FaceDetector, face_crop, face_parts
from mien.perception.crops import sample_pixels
from mien.rendering import draw_texture
from mien.result import Reconstruction
from mien.texture import TexelAtlas
from mien.texture.relight import DARKEST
from mien.typing import Float, Tensor

PERSON = ("lisa/lisa1.jpg", "lisa/lisa3.jpg", "lisa/lisa4.jpg", "zoom/30cm.jpg", "zoom/60cm.jpg")
CROP_PX = 512
FINE_SHARE = 0.02
"""Width of the blur that separates colour from detail, in sides of the crop."""
SIDE_DEG = 50.0
"""Turn of the pictures from the side."""


@dataclass(frozen=True)
class TextureScore:
    """How well a texture fits a photo that it was not made from."""

    colour: float
    """Root mean square difference of the colours, 0 to 1."""
    detail: float
    """Correlation of the fine detail."""


@dataclass(frozen=True)
class HeldOutPhoto:
    """The textures of the other photos, measured in one photo."""

    photo: str
    """Name of the photo that was left out."""
    alone: tuple[TextureScore, ...]
    """The texture of each other photo."""
    joint: TextureScore
    """The texture of all other photos together."""
    own: TextureScore
    """The photo's own texture: what is left is not the texture's fault."""


class Probe:
    """One photo with its reconstruction: draws it with other textures, and measures them."""

    def __init__(self, model: MorphableModel, detector: FaceDetector, path: Path, face: Reconstruction) -> None:
        self.model, self.face = model, face
        pixels = mien.read_photo(path).pixels
        (detection,) = detector.detect(pixels, max_faces=1)
        crop = face_crop(torch.from_numpy(detection.landmarks468_px[:, :2]), size=CROP_PX)
        centre = crop.to_crop(torch.from_numpy(face.centre_px).double()[None]).float()
        self.camera = Camera(torch.tensor([face.focal_px / crop.scale]).float(), centre, (CROP_PX, CROP_PX))
        self.photo = sample_pixels(pixels, crop)
        self.skin = face_parts(pixels, detection, crop).skin[None, None]

    def relit(self, other: Reconstruction) -> Float[Tensor, "1 3 S S"]:
        """The texture of another reconstruction of the person in the light of this photo."""
        texture = torch.from_numpy(other.texture).permute(2, 0, 1)[None]
        atlas = TexelAtlas.of(self.model, texture.shape[-1])
        shades = [atlas.dilate(atlas.interpolate(_light_on(self.model, face)[None])) for face in (other, self.face)]
        return (texture / shades[0].clamp(min=DARKEST) * shades[1]).clamp(0, 2)

    def drawn(self, texture: Float[Tensor, "1 3 S S"], *, yaw_deg: float = 0.0) -> tuple[Tensor, Tensor]:
        """The face with a texture, and where it is; turned about the vertical axis through its middle."""
        vertices = torch.from_numpy(self.face.vertices)[None]
        turn = rotvec_to_rotmat(torch.tensor([[0.0, np.deg2rad(yaw_deg), 0.0]], dtype=vertices.dtype))
        middle = vertices.mean(1, keepdim=True)
        image, coverage = draw_texture(self.model, (vertices - middle) @ turn + middle, self.camera, texture=texture)
        return image, coverage[:, None]

    def score(self, texture: Float[Tensor, "1 3 S S"]) -> TextureScore:
        """Compare the drawing with the photo."""
        image, coverage = self.drawn(texture)
        weight = (self.skin * coverage > 0.5).float()
        gain = (self.photo * weight).sum((2, 3), keepdim=True) / (image * weight).sum((2, 3), keepdim=True)
        image = image * gain
        squared = ((image - self.photo) ** 2).mean(1, keepdim=True)
        fine = [_fine(values.mean(1, keepdim=True), weight)[weight > 0] for values in (image, self.photo)]
        correlation = torch.corrcoef(torch.stack(fine))[0, 1]
        return TextureScore(float(((squared * weight).sum() / weight.sum()).sqrt()), float(correlation))

    def picture(self, texture: Float[Tensor, "1 3 S S"], *, yaw_deg: float = 0.0) -> np.ndarray:
        """The drawing as 8 bits."""
        image, coverage = self.drawn(texture, yaw_deg=yaw_deg)
        return _bytes(image * coverage + 0.5 * (1 - coverage))


def _light_on(model: MorphableModel, face: Reconstruction) -> Float[Tensor, "V 3"]:
    normals = vertex_normals(torch.from_numpy(face.vertices_model)[None], model.triangles)
    turned = normals @ torch.from_numpy(face.rotation).T
    return shading(turned, torch.from_numpy(face.lighting)[None])[0]


def _fine(values: Float[Tensor, "1 1 S S"], weight: Float[Tensor, "1 1 S S"]) -> Float[Tensor, "1 1 S S"]:
    """The values without their mean over the neighbourhood, as far as it is skin."""
    side = 2 * round(FINE_SHARE * values.shape[-1] / 2) + 1
    total = F.avg_pool2d(weight, side, stride=1, padding=side // 2)
    mean = F.avg_pool2d(values * weight, side, stride=1, padding=side // 2) / total.clamp(min=1e-6)
    return values - mean


def _bytes(image: Float[Tensor, "1 3 S S"]) -> np.ndarray:
    return (image[0].permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy()


@torch.no_grad()
def measured(reconstructor: mien.Reconstructor, paths: Sequence[Path], sheets: Path, name: str) -> list[HeldOutPhoto]:
    """Leave out each photo of a person once."""
    detector, model = FaceDetector(), reconstructor.model
    alone = [reconstructor(path)[0] for path in paths]
    found = []
    for k, path in enumerate(paths):
        probe = Probe(model, detector, path, alone[k])
        others = [other for other in range(len(paths)) if other != k]
        together = reconstructor.joint([paths[other] for other in others])
        singles = [probe.relit(alone[other]) for other in others]
        joint, own = probe.relit(together.face), probe.relit(alone[k])
        scores = [probe.score(texture) for texture in singles]
        found.append(HeldOutPhoto(f"{name}-{path.stem}", tuple(scores), probe.score(joint), probe.score(own)))
        best = singles[int(np.argmin([score.colour for score in scores]))]
        row = [_bytes(probe.photo), *map(probe.picture, (best, joint, own))]
        row += [probe.picture(joint, yaw_deg=turn) for turn in (-SIDE_DEG, SIDE_DEG)]
        sheets.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.concatenate(row, axis=1)).save(sheets / f"{name}-{path.stem}.jpg", quality=92)
    return found


def photos_of_views(data: Path, model: MorphableModel, out: Path, *, limit: int) -> dict[str, list[Path]]:
    """Photos of ICT heads from four sides."""
    ict = IctModel.load(data / "ict_facekit.npz")
    painter, people = HeadPainter(ict, model), dict[str, list[Path]]()
    for head in sample_heads(ict, albedo_count=model.counts[2], count=limit, seed=25):
        colours = _Painted(painter.colours(head))
        for k, pose in enumerate(VIEWS_DEG):
            path = out / "photos" / f"head{head.index:02d}_yaw{pose[0]:+d}.jpg"
            save_photograph(simulate_camera(ict, colours, neutral(head, k), pose_deg=pose), path)
            people.setdefault(f"head{head.index:02d}", []).append(path)
    return people


def summary(photos: Sequence[HeldOutPhoto], *, title: str) -> str:
    """Joint against the mean and the best of the single textures."""
    rows = []
    for name, sign in (("colour", 1), ("detail", -1)):
        single = [[getattr(score, name) for score in photo.alone] for photo in photos]
        joint = {photo.photo: getattr(photo.joint, name) for photo in photos}
        best = [min(values, key=lambda value, sign=sign: sign * value) for values in single]
        means = {photo.photo: float(np.mean(values)) for photo, values in zip(photos, single, strict=True)}
        difference = paired_difference(joint, means)
        assert difference is not None, "both have the same photos"
        own = np.mean([getattr(photo.own, name) for photo in photos])
        rows.append(
            [
                name,
                len(photos),
                f"{np.mean(list(means.values())):.3f}",
                f"{np.mean(best):.3f}",
                f"{np.mean(list(joint.values())):.3f}",
                f"{difference.difference:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]",
                f"{own:.3f}",
            ]
        )
    return markdown_table([title, "photos", "alone, mean", "alone, best", "joint", "joint - mean", "own"], rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with photos_ccby and ict_facekit.npz")
    parser.add_argument("--part", choices=("person", "views"), action="append", help="default: both")
    parser.add_argument("--mode", default="net", help="of the reconstructions: fit, net or auto")
    parser.add_argument("--limit", type=int, default=4, help="number of ICT heads")
    parser.add_argument("--no-detail", action="store_true", help="without detail maps")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/joint_texture"), help="folder of the results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", PhotoLeftOut)
    warnings.simplefilter("ignore", FaceDoubtful)
    reconstructor = mien.Reconstructor(mode=options.mode, detail=not options.no_detail, texture_size=1024, max_faces=1)
    environment = Environment.current()
    print(f"{environment}\n")
    for part in options.part or ("person", "views"):
        if part == "person":
            people = {"lisa": [options.data / "photos_ccby" / name for name in PERSON]}
        else:
            people = photos_of_views(options.data, reconstructor.model, options.out, limit=options.limit)
        found = [
            one for name, paths in people.items() for one in measured(reconstructor, paths, options.out / part, name)
        ]
        print(summary(found, title=f"{part}, mode {options.mode}") + "\n", flush=True)
        write_json(options.out / f"{part}-{options.mode}.json", environment=environment, results=found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
