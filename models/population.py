"""MakeHuman adults: random people from its phenotypes and face modifiers, and their principal components."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from face_region import FaceRegion
from makehuman import MakeHuman
from surface import REFLECT_X, similarity

ANCESTRIES = ("african", "asian", "caucasian")
GENDERS = ("female", "male")
SAMPLES = 1200
MODIFIER_SD = 0.2
"""Spread of the local modifiers. At 0.2 the population varies by 3.1 mm RMS, as scanned people do; at 0.35 it
turns visibly monstrous."""
AGES = (18.0, 60.0)
FOLDERS = ("head", "forehead", "eyes", "eyebrows", "nose", "mouth", "cheek", "chin", "neck", "asym")
OPPOSITES = {
    "decr": "incr", "down": "up", "in": "out", "backward": "forward", "concave": "convex",
    "compress": "uncompress", "square": "round", "pointed": "triangle",
}  # fmt: skip


@dataclass(frozen=True)
class Population:
    """Aligned random faces; an equal number of them are the mirror images of the others."""

    mean: np.ndarray
    """(V, 3) millimetres, symmetric, pupils 63 mm apart, centred on its vertices."""
    components: np.ndarray
    """(V, 3, K) principal components, each scaled by its standard deviation."""
    mean_from_makehuman: tuple[float, np.ndarray, np.ndarray]
    """Similarity that takes MakeHuman's average adult to `mean`."""

    def turned(self, rotation: np.ndarray) -> Population:
        """The same people after a rotation (3, 3)."""
        scale, first, shift = self.mean_from_makehuman
        components = np.einsum("ij,vjk->vik", rotation, self.components)
        return Population(self.mean @ rotation.T, components, (scale, rotation @ first, rotation @ shift))


def average_adult(source: MakeHuman, base_vertices: np.ndarray, mirror: np.ndarray) -> np.ndarray:
    """Symmetric young adult between all ancestries and sexes, (19158, 3); the build measures its cut on it."""
    weights = {f"macrodetails/{a}-{g}-young": 1 / 6 for a in ANCESTRIES for g in GENDERS}
    weights |= {f"macrodetails/universal-{g}-young-averagemuscle-averageweight": 1 / 2 for g in GENDERS}
    adult = base_vertices + sum(w * source.target(name) for name, w in weights.items())
    return (adult + adult[mirror] * REFLECT_X) / 2


def sample_population(
    source: MakeHuman, region: FaceRegion, base_vertices: np.ndarray, *, eye_distance: float, seed: int
) -> Population:
    """Draw, align (generalised Procrustes) and analyse random adults."""
    faces = sample_people(source, region, base_vertices, np.random.default_rng(seed))
    raw_mean = faces.mean(0)
    raw_mean = (raw_mean + raw_mean[region.mirror] * REFLECT_X) / 2
    reference = _normalise(raw_mean, region, eye_distance)
    aligned = np.empty_like(faces)
    for _ in range(3):
        for k, face in enumerate(faces):
            scale, rotation, shift = similarity(face, reference)
            aligned[k] = scale * face @ rotation.T + shift
        mean = aligned.mean(0)
        reference = _normalise((mean + mean[region.mirror] * REFLECT_X) / 2, region, eye_distance)
    both = np.concatenate([aligned, aligned[:, region.mirror] * REFLECT_X]) - reference
    components = principal_components(both.reshape(len(both), -1).T / np.sqrt(len(both)), 300)
    return Population(reference, components.reshape(*reference.shape, -1), similarity(raw_mean, reference))


def sample_people(
    source: MakeHuman, region: FaceRegion, base_vertices: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Vertices (SAMPLES, V, 3) of random adults in MakeHuman's millimetres, not aligned."""
    return _phenotypes(source, region, base_vertices, rng) + _modifiers(source, region, rng)


def principal_components(factor: np.ndarray, count: int) -> np.ndarray:
    """Leading columns F' (D, count) of a factor F (D, N) with F' F'^T ~ F F^T, orthogonal, largest first."""
    if factor.shape[1] <= factor.shape[0]:
        values, vectors = np.linalg.eigh(factor.T @ factor)
        order = np.argsort(-values)[:count]
        order = order[values[order] > values.max() * 1e-10]
        components = factor @ vectors[:, order]
    else:
        raise ValueError("more columns than rows: pass the transposed problem")
    # Fix the sign, which eigenvectors leave open, so that builds agree.
    largest = np.abs(components).argmax(0)
    return components * np.sign(components[largest, np.arange(components.shape[1])])


def _normalise(mean: np.ndarray, region: FaceRegion, eye_distance: float) -> np.ndarray:
    eyes = mean[region.eye_cap]
    distance = eyes[eyes[:, 0] > 0].mean(0)[0] - eyes[eyes[:, 0] < 0].mean(0)[0]
    return (mean - mean.mean(0)) * (eye_distance / distance)


def phenotype_weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Weights (SAMPLES,) of MakeHuman's targets in random adults, by the target's name."""
    ancestry = rng.dirichlet([0.45] * 3, SAMPLES)
    male = rng.beta(0.5, 0.5, SAMPLES)
    gender = np.stack([1 - male, male], 1)
    age = rng.uniform(*AGES, SAMPLES)
    # MakeHuman's anchors of age: child 12, young 25, old 90 years.
    child = np.clip((25 - age) / 13, 0, 1)
    old = np.clip((age - 25) / 65, 0, 1)
    ages = {"child": child, "young": 1 - child - old, "old": old}
    muscle = _three_way(rng.normal(0.5, 0.17, SAMPLES), "muscle")
    weight = _three_way(rng.normal(0.5, 0.17, SAMPLES), "weight")
    weights: dict[str, np.ndarray] = {}
    for g, gender_name in enumerate(GENDERS):
        for age_name, age_weight in ages.items():
            for a, ancestry_name in enumerate(ANCESTRIES):
                name = f"macrodetails/{ancestry_name}-{gender_name}-{age_name}"
                weights[name] = gender[:, g] * age_weight * ancestry[:, a]
            for m, muscle_weight in muscle.items():
                for w, fat_weight in weight.items():
                    name = f"macrodetails/universal-{gender_name}-{age_name}-{m}-{w}"
                    weights[name] = gender[:, g] * age_weight * muscle_weight * fat_weight
    return weights


def _phenotypes(
    source: MakeHuman, region: FaceRegion, base_vertices: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    weights = phenotype_weights(rng)
    offsets = np.stack([region.operator @ source.target(name) for name in weights])
    neutral = region.operator @ base_vertices
    return neutral + np.einsum("kn,kvd->nvd", np.stack(list(weights.values())), offsets, optimize=True)


def _three_way(value: np.ndarray, what: str) -> dict[str, np.ndarray]:
    value = np.clip(value, 0, 1)
    low, high = np.clip(1 - 2 * value, 0, 1), np.clip(2 * value - 1, 0, 1)
    return {f"min{what}": low, f"average{what}": 1 - low - high, f"max{what}": high}


def _modifiers(source: MakeHuman, region: FaceRegion, rng: np.random.Generator) -> np.ndarray:
    """Offsets (N, V, 3) of random face modifiers; paired sides move together but for a fifth."""
    offsets = {
        name.split("/")[1]: region.operator @ source.target(name)
        for folder in FOLDERS
        for name in source.targets_in(folder)
        if "-trans-" not in name or folder not in ("head", "neck")
    }
    total = np.zeros((SAMPLES, *next(iter(offsets.values())).shape))

    def add(name: str, amount: np.ndarray) -> None:
        moved = np.flatnonzero(np.abs(offsets[name]).sum(1) > 1e-6)
        total[:, moved] += amount[:, None, None] * offsets[name][moved]

    for negative, positive, other_side in _opposite_pairs(sorted(offsets)):
        amount = rng.normal(0, MODIFIER_SD, SAMPLES)
        for first, second in ((negative, positive), *other_side):
            own = amount + rng.normal(0, 0.2 * MODIFIER_SD, SAMPLES) if other_side else amount
            own = np.clip(own, -1, 1)
            add(second, np.maximum(own, 0))
            add(first, np.maximum(-own, 0))
    for name in sorted(offsets):
        if name.startswith("asym") and name.endswith("-l"):
            amount = np.clip(rng.normal(0, 0.4 * MODIFIER_SD, SAMPLES), -1, 1)
            add(name, np.maximum(amount, 0))
            add(name[:-1] + "r", np.maximum(-amount, 0))
        elif name in ("head-diamond", "head-oval", "head-rectangular", "head-triangular",
                      "head-invertedtriangular"):  # fmt: skip
            add(name, np.abs(rng.normal(0, 0.6 * MODIFIER_SD, SAMPLES)))
    return total


def _opposite_pairs(names: list[str]) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Modifiers as (negative, positive, [the same pair on the right side])."""
    known = set(names)
    pairs = []
    for name in names:
        match = re.match(r"^(l-|r-)?(.*)-(\w+)$", name)
        if match is None or name.startswith("asym") or match[1] == "r-" or match[3] not in OPPOSITES:
            continue
        positive = name[: -len(match[3])] + OPPOSITES[match[3]]
        if positive not in known:
            continue
        other = [("r-" + name[2:], "r-" + positive[2:])] if match[1] else []
        pairs.append((name, positive, other))
    return pairs
