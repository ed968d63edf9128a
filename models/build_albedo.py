"""Build the albedo of the packaged face model from photographs of real skin and a model of its pigments.

    python models/build_albedo.py --portraits FOLDER

FOLDER is the collection of CC-BY portraits described in src/mien/assets/PROVENANCE.md. The geometry in
src/mien/assets/mien-face.safetensors is read and kept; only albedo_mean and albedo_basis are rewritten.
docs/albedo.md explains the method and shows the result.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import portraits as photos
from record_asset import record_asset
from safetensors import safe_open
from safetensors.numpy import save_file
from shading import Y00, transfer
from skin_optics import encode, lab, skin_colour
from skin_regions import EyeParts, FaceMesh, SkinRegions, eye_parts, skin_regions
from skin_statistics import RealSkin, real_skin

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "src" / "mien" / "assets" / "mien-face.safetensors"
COMPONENTS = 40
POPULATION = 1400
SEED = 20

# Lightness L* of the population's plain skin: mean and spread such that two standard deviations reach from the
# darkest (32) to the fairest (84), so that no tone is a rarity to the prior.
LIGHTNESS_MEAN, LIGHTNESS_SD = 58.0, 13.0
LIGHTNESS_RANGE = (25.0, 86.0)
TONE_BANDWIDTH = 9.0  # L*; over how large a difference in tone one person's features are lent to another

# How much of the measured differences between people of one tone is theirs; the rest is the photographs' (cast,
# shine, make-up, misplaced points).
TONE_FREEDOM, FEATURE_FREEDOM, LIP_FREEDOM = 0.50, 0.85, 0.5
IRIS_SATURATION = 1.5  # the iris's reflections and the prefilter grey it

# CIELAB that anchors the law's two ends. The studio's own light washes both out to grey. The dark pair lies halfway
# between the participants and the two darkest of five clusters of facial skin measured with a spectroradiometer,
# (26.7, 14.6, 14.7) and (37.7, 17.2, 14.7) (120 people; IADR 2009, abstract 120461). The light pair (individual
# typology angle above 55 degrees) is chosen, not measured: the fair participants' hue with a little less chroma.
TONE_ANCHORS = np.array([[28.0, 11.0, 12.8], [38.0, 13.6, 14.9], [76.0, 9.5, 15.0], [82.0, 8.5, 14.0]])

DARK_HAIR = np.array([0.016, 0.012, 0.010])  # linear colour
INNER_MOUTH = np.array([0.20, 0.060, 0.055])


@dataclass(frozen=True)
class ToneLaw:
    """Chroma of skin as a quadratic in its lightness, with the spread around it; natural logs of linear sRGB."""

    coefficients: np.ndarray
    """(3, 2): constant, linear and quadratic coefficient of log r/g and log b/g in (L* - 58) / 13."""
    factor: np.ndarray
    """(2, 2) square root of the covariance that is left."""

    def chroma(self, lightness: np.ndarray) -> np.ndarray:
        """Log ratios (..., 2) of red and blue to green."""
        return _powers(lightness) @ self.coefficients

    def tone(self, lightness: np.ndarray, draw: np.ndarray) -> np.ndarray:
        """Linear colours (..., 3) of given L*; `draw` (..., 2) standard normal."""
        chroma = self.chroma(lightness) + draw @ self.factor.T
        direction = np.exp(np.stack([chroma[..., 0], np.zeros_like(lightness), chroma[..., 1]], -1))
        luminance = ((np.asarray(lightness) + 16) / 116) ** 3
        return direction * (luminance / (direction @ [0.2126, 0.7152, 0.0722]))[..., None]


def _powers(lightness: np.ndarray) -> np.ndarray:
    x = (np.asarray(lightness, float) - LIGHTNESS_MEAN) / LIGHTNESS_SD
    return np.stack([np.ones_like(x), x, x * x], -1)


def tone_law(real: RealSkin) -> ToneLaw:
    """Fit the participants' tones, every lightness counting the same however many people have it."""
    chroma = real.tone[:, [0, 2]] - real.tone[:, [1]]
    weight = 1 / _density(real.lightness)
    anchors = np.log(linear_from_lab(TONE_ANCHORS))
    chroma = np.concatenate([chroma, anchors[:, [0, 2]] - anchors[:, [1]]])
    weight = np.concatenate([weight, np.full(len(TONE_ANCHORS), 0.10 * weight.sum())])
    basis = _powers(np.concatenate([real.lightness, TONE_ANCHORS[:, 0]]))
    root = np.sqrt(weight)[:, None]
    coefficients = np.linalg.lstsq(basis * root, chroma * root, rcond=None)[0]
    count = len(real.lightness)
    rest, mass = (chroma - basis @ coefficients)[:count], weight[:count]
    rest = rest - (rest * mass[:, None]).sum(0) / mass.sum()
    covariance = (rest * mass[:, None]).T @ rest / mass.sum()
    return ToneLaw(coefficients=coefficients, factor=TONE_FREEDOM * np.linalg.cholesky(covariance))


def _density(lightness: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * ((lightness[:, None] - lightness) / TONE_BANDWIDTH) ** 2).mean(1)


def linear_from_lab(colour: np.ndarray) -> np.ndarray:
    """Linear sRGB (..., 3) of CIELAB colours by Newton's method on `lab`."""
    linear = np.full_like(colour, 0.3)
    for _ in range(30):
        step = np.stack([(lab(linear + 1e-5 * unit) - lab(linear)) / 1e-5 for unit in np.eye(3)], -1)
        linear = np.clip(linear + np.linalg.solve(step, (colour - lab(linear))[..., None])[..., 0], 1e-4, 1.5)
    return linear


def read_mesh(path: Path) -> FaceMesh:
    """Read the geometry that the albedo is made for."""
    with safe_open(path, "np") as file:
        array = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    vertices = array["mean"].astype(float)
    corners = vertices[array["triangles"][array["mediapipe_triangles"]]]
    return FaceMesh(
        vertices=vertices,
        triangles=array["triangles"].astype(np.int64),
        mirror=array["mirror"].astype(np.int64),
        landmarks68=array["landmarks68"].astype(np.int64),
        mesh468=(corners * array["mediapipe_barycentrics"][..., None]).sum(1).astype(float),
        identity_basis=array["identity_basis"],
        lips=array["mask_lips"].astype(float),
        brows=array["mask_brows"].astype(float),
        eyes=array["mask_eyes"].astype(float),
        neck=array["mask_neck"].astype(float),
        mouth=array["mask_mouth"].astype(float),
    )


def paint_eyes(colours: np.ndarray, eyes: EyeParts, mesh: FaceMesh, *, iris: np.ndarray, sclera: np.ndarray) -> None:
    """Paint the eye caps of linear vertex colours (V, 3) in place: white, iris with a darker rim, pupil."""
    caps = mesh.eyes > 0.5
    white = sclera * (1 - 0.22 * eyes.corner[caps, None] * np.array([0.6, 1.0, 1.0]))
    ring = iris * (1 - 0.55 * eyes.limbus[caps, None]) * (1 + 0.35 * eyes.inner_ring[caps, None])
    mixed = white + eyes.iris[caps, None] * (ring - white)
    colours[caps] = mixed * (1 - eyes.pupil[caps, None]) + 0.006 * eyes.pupil[caps, None]


@dataclass(frozen=True)
class Painter:
    """Everything that stays the same from one made-up person to the next."""

    mesh: FaceMesh
    real: RealSkin
    law: ToneLaw
    regions: SkinRegions
    eyes: EyeParts
    fields: np.ndarray
    """(F, V) smooth symmetric random fields of unit variance, coarse to fine."""
    freckles: np.ndarray
    """(V,) pattern of small spots on cheeks and nose."""
    freedom: np.ndarray
    """(V,) share of the measured individual differences that is kept."""

    def neighbours(self, lightness: float, female: bool) -> np.ndarray:
        """Probability (N,) of lending from each participant to a person of this tone and sex."""
        near = np.exp(-0.5 * ((self.real.lightness - lightness) / TONE_BANDWIDTH) ** 2) + 1e-9
        near = near / _density(self.real.lightness) ** 0.5
        near = near * np.where(self.real.female == female, 1.0, 0.25)
        return near / near.sum()

    def person(self, rng: np.random.Generator, *, female: bool) -> np.ndarray:
        """Linear colours (V, 3) of one made-up person."""
        regions = self.regions
        lightness = float(np.clip(rng.normal(LIGHTNESS_MEAN, LIGHTNESS_SD), *LIGHTNESS_RANGE))
        tone = self.law.tone(np.array(lightness), rng.normal(size=2))
        chance = self.neighbours(lightness, female)
        first, second = rng.choice(len(chance), 2, p=chance)
        average = np.tensordot(chance, self.real.detail, 1)
        angle = rng.uniform(0, np.pi / 2)
        own = np.cos(angle) * (self.real.detail[first] - average)
        own += np.sin(angle) * (self.real.detail[second] - average)
        detail = average + own * self.freedom[:, None]

        melanin, blood = self.pigments(tone)
        age = rng.beta(1.3, 1.6)  # 0 young, 1 old
        flush = rng.normal(0.14, 0.20) * regions.cheeks + rng.normal(0.10, 0.16) * regions.nose
        flush += 0.10 * rng.normal() * regions.lids + rng.normal(0.12 - 0.25 * (age - 0.45), 0.12) * regions.lips
        flush += (0.03 + 0.04 * age) * rng.normal(size=len(self.fields)) @ self.fields / len(self.fields) ** 0.5
        pigment = (0.10 * rng.normal() + 0.20 * (age - 0.45)) * regions.under_eye
        pigment += (0.02 + 0.04 * age) * rng.normal(size=len(self.fields)) @ self.fields / len(self.fields) ** 0.5
        if rng.random() < 0.3:
            pigment += rng.uniform(0.1, 0.5) * self.freckles * np.interp(lightness, [45, 65], [0.3, 1.0])
        change = skin_colour(melanin * np.exp(pigment), blood * np.exp(flush))
        change = change / skin_colour(np.array(melanin), np.array(blood))
        colours = tone * np.exp(detail) * change

        if not female and rng.random() < 0.5:
            thickness = rng.beta(0.7, 2.6)
            shadow = (0.7 * thickness * regions.beard)[:, None]
            colours = colours * (1 - shadow) + DARK_HAIR * np.interp(lightness, [40, 75], [1.0, 2.0]) * shadow
        grey = max(0.0, age - 0.75) * 2.0 * regions.brows[:, None]
        colours = colours * (1 - 0.5 * grey) + 0.5 * grey * 0.8 * tone

        chosen = first if angle < np.pi / 4 else second
        log_iris = np.log(self.real.iris)
        usual = chance @ log_iris
        iris = usual + 0.75 * (log_iris[chosen] - usual) + 0.12 * rng.normal()
        iris = np.exp(iris.mean() + IRIS_SATURATION * (iris - iris.mean()))
        sclera = np.array([0.60, 0.545, 0.51]) * np.interp(lightness, [35, 70], [0.88, 1.04])
        sclera = sclera * np.exp([0.05 * rng.normal()] * 3 + 0.03 * rng.normal(size=3))
        paint_eyes(colours, self.eyes, self.mesh, iris=iris, sclera=sclera)
        mouth = regions.mouth[:, None]
        return colours * (1 - mouth) + mouth * INNER_MOUTH * np.interp(lightness, [35, 75], [0.75, 1.1])

    def pigments(self, tone: np.ndarray) -> tuple[float, float]:
        """Melanin and blood fractions whose modelled skin is nearest to a tone in luminance and in red to green."""
        melanin = np.geomspace(0.008, 0.6, 60)[:, None]
        blood = np.geomspace(0.006, 0.12, 24)[None, :]
        table = np.log(skin_colour(*np.broadcast_arrays(melanin, blood)))
        wanted = np.log(tone)
        error = (table[..., 1] - wanted[1]) ** 2
        error += 2 * ((table[..., 0] - table[..., 1]) - (wanted[0] - wanted[1])) ** 2
        row, column = np.unravel_index(error.argmin(), error.shape)
        return float(melanin[row, 0]), float(blood[0, column])


def smooth_fields(mesh: FaceMesh, rng: np.random.Generator) -> np.ndarray:
    """Symmetric random fields (F, V) with correlation lengths of 28, 14 and 8 mm."""
    folded = mesh.vertices * [1, 1, 1]
    folded[:, 0] = np.abs(folded[:, 0])
    rows = []
    for length, count in ((28.0, 4), (14.0, 4), (8.0, 4)):
        for _ in range(count):
            waves = rng.normal(size=(3, 120)) / length
            rows.append(
                np.cos(folded @ waves + rng.uniform(0, 2 * np.pi, 120)) @ rng.normal(size=120) * np.sqrt(2 / 120)
            )
    return np.array(rows)


def freckle_pattern(mesh: FaceMesh, regions: SkinRegions, rng: np.random.Generator) -> np.ndarray:
    """Small separate spots, one vertex or two wide, denser over the cheeks and the bridge of the nose."""
    home = np.clip(regions.cheeks + 0.9 * regions.nose, 0, 1)
    chosen = rng.random(len(mesh.vertices)) < 0.16 * home
    spots = np.zeros(len(mesh.vertices))
    centres = np.flatnonzero(chosen)
    for k in centres:
        distance = ((mesh.vertices - mesh.vertices[k]) ** 2).sum(1)
        spots = np.maximum(spots, rng.uniform(0.4, 1.0) * np.exp(-distance / 1.1**2))
    spots = spots - spots[home > 0.3].mean() * home
    return spots * home


def principal_components(people: np.ndarray, *, eye_weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (V, 3) and orthogonal components (40, V, 3), one unit one standard deviation, of people (N, V, 3).

    The eye caps count more than their few vertices would, because viewers look at the eyes; the components are turned
    so that they are orthogonal without that weight.
    """
    count = len(people)
    mean = people.mean(0)
    flat = (people - mean).reshape(count, -1)
    weight = np.repeat(np.sqrt(eye_weight), 3).astype(np.float32)
    weighted = flat * weight
    values, vectors = np.linalg.eigh((weighted @ weighted.T).astype(np.float64) / count)
    order = np.argsort(values)[::-1][:COMPONENTS]
    scores = vectors[:, order] * np.sqrt(count)  # unit variance
    factor = flat.T.astype(np.float64) @ scores / count
    turn = np.linalg.eigh(factor.T @ factor)[1]
    basis = (factor @ turn[:, ::-1]).T.reshape(COMPONENTS, *mean.shape)
    lift = np.sign((basis.sum((1, 2)) >= 0) - 0.5)  # positive is lighter: the sign is a free choice
    return mean, basis * lift[:, None, None]


def build(mesh: FaceMesh, people: list[photos.Portrait], mirror189: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (V, 3) and basis (40, V, 3) of the albedo, sRGB-encoded."""
    painter = make_painter(mesh, people, mirror189)
    sheet = population(painter, POPULATION)
    report(painter, sheet)
    return model_of(painter, sheet)


def population(painter: Painter, count: int) -> np.ndarray:
    """Encoded colours (count, V, 3) of made-up people, women and men in turn."""
    rng = np.random.default_rng(SEED)
    return np.stack(
        [encode(painter.person(rng, female=i % 2 == 0)).clip(0, 1).astype(np.float32) for i in range(count)]
    )


def model_of(painter: Painter, sheet: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (V, 3) and basis (40, V, 3) of a population with women and men in turn.

    The mean is freshly shaven: two thirds of the difference that the men's beards make are taken out of it.
    """
    mesh = painter.mesh
    mean, basis = principal_components(sheet, eye_weight=1 + 5.0 * (mesh.eyes > 0.5))
    shadow = 0.5 * (sheet[1::2].mean(0) - sheet[0::2].mean(0)) * painter.regions.beard[:, None]
    mean = mean - 0.67 * shadow
    return 0.5 * (mean + mean[mesh.mirror]), basis


def make_painter(mesh: FaceMesh, people: list[photos.Portrait], mirror189: np.ndarray) -> Painter:
    """Measure the photographs and prepare what painting people needs."""
    arriving = transfer(mesh.vertices, mesh.triangles)
    regions = skin_regions(mesh, arriving[:, 0] / Y00)
    real = real_skin(mesh, people, mirror189, transfer=arriving, regions=regions)
    rng = np.random.default_rng(SEED)
    return Painter(
        mesh=mesh,
        real=real,
        law=tone_law(real),
        regions=regions,
        eyes=eye_parts(mesh, *photos.pupil_fractions(people)),
        fields=smooth_fields(mesh, rng),
        freckles=freckle_pattern(mesh, regions, rng),
        freedom=FEATURE_FREEDOM + (LIP_FREEDOM - FEATURE_FREEDOM) * regions.lips,
    )


def report(painter: Painter, sheet: np.ndarray) -> None:
    """Print what the population is made of."""
    print(f"participants {len(painter.real.tone)}, L* {np.quantile(painter.real.lightness, [0, 0.1, 0.5, 0.9, 1])}")
    for lightness in (30, 40, 50, 60, 70, 80):
        tone = painter.law.tone(np.array(float(lightness)), np.zeros(2))
        print(f"L* {lightness}: sRGB {encode(tone).round(3)}, Lab {lab(tone).round(1)}")
    print(f"spread of chroma (log r/g, b/g): {np.sqrt((painter.law.factor**2).sum(1)).round(3)}")
    print(f"population {sheet.shape}, {np.mean((sheet <= 0) | (sheet >= 1)):.4f} of its values at the limits")


def write(path: Path, mean: np.ndarray, basis: np.ndarray) -> None:
    """Replace the two albedo tensors, keep every other tensor and the metadata."""
    with safe_open(path, "np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        metadata = file.metadata()
    if arrays["mean"].shape != mean.shape:
        raise ValueError(f"{path} has {len(arrays['mean'])} vertices, the albedo {len(mean)}: it changed meanwhile")
    arrays["albedo_mean"] = np.ascontiguousarray(mean, np.float32)
    arrays["albedo_basis"] = np.ascontiguousarray(basis, np.float16)
    partial = path.with_suffix(".partial")
    save_file(arrays, partial, metadata=metadata)
    partial.chmod(0o644)  # safetensors writes for the owner alone
    partial.replace(path)


def detect(folder: Path) -> dict[str, np.ndarray]:
    """Find the 468 face-mesh points (468, 3) of every photograph with a template, by file name."""
    from PIL import Image  # noqa: PLC0415 (the package is needed only where no points are given)

    from mien.perception import FaceDetector  # noqa: PLC0415

    perception = FaceDetector()
    files = np.load(folder / "templates.npz")["files_189"].tolist()
    return {
        file: perception.detect(np.asarray(Image.open(folder / file).convert("RGB")), max_faces=1)[0].landmarks468_px
        for file in files
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--portraits", type=Path, required=True, help="folder with manifest.csv and templates.npz")
    parser.add_argument("--meshes", type=Path, help=".npz of 468 points found earlier: files (N,), points (N, 468, 3)")
    parser.add_argument("--model", type=Path, default=MODEL)
    options = parser.parse_args()
    if options.meshes:
        stored = np.load(options.meshes)
        meshes = dict(zip(stored["files"].tolist(), stored["points"], strict=True))
    else:
        meshes = detect(options.portraits)
    people = photos.load_portraits(options.portraits, meshes)
    mirror189 = np.load(options.portraits / "templates.npz")["mirror_189"]
    mean, basis = build(read_mesh(options.model), people, mirror189)
    write(options.model, mean, basis)
    if options.model == MODEL:
        refresh_record(MODEL.name)
    print("standard deviation of the components:", np.sqrt((basis**2).mean((1, 2))).round(4).tolist())


def refresh_record(name: str) -> None:
    """Write the changed file's hash into the manifest, its licence and source as they were."""
    import json  # noqa: PLC0415

    rows = json.loads((MODEL.parent / "manifest.json").read_text(encoding="utf-8"))
    for row in rows:
        if row["name"] == name:
            record_asset(name, licence=row["licence"], source=row["source"])


if __name__ == "__main__":
    main()
