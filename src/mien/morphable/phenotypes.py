"""MakeHuman's phenotypes, in anny's scales, as identity coefficients of the packaged model.

anny (naver/anny) and MakeHuman describe a person by a few numbers, and blend shape targets with products of these
numbers' interpolation weights. `phenotypes.safetensors` holds the identity coefficients of every target's face, so the
same blend of its rows gives the coefficients of the person's face. `models/build_phenotypes.py` makes the file.
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
from mien.morphable.revisions import is_made_for
from mien.typing import Float, Tensor

PHENOTYPES_FILE = "phenotypes.safetensors"
GENDERS = ("male", "female")
AGES = ("baby", "child", "young", "old")
MUSCLES = ("minmuscle", "averagemuscle", "maxmuscle")
WEIGHTS = ("minweight", "averageweight", "maxweight")
HEIGHTS = ("minheight", "maxheight")
PROPORTIONS = ("idealproportions", "uncommonproportions")
BODY_ONLY = ("cupsize", "firmness")
"""Phenotypes of anny that do not change the face."""
LEAST_AGE = 1 / 6
"""Below six years the jaw folds, since the components are those of adults: a baby's face differs by up to 39 mm."""


@dataclass(frozen=True)
class Phenotype:
    """A person in anny's scales, each from 0 to 1 (age from 1/6), with anny's defaults.

    Raises:
        ConfigError: A value lies outside its scale.
    """

    gender: float = 0.5
    """0 male, 1 female, as in anny; MakeHuman's own slider runs the other way."""
    age: float = 0.5
    """1/6 child of about 6 years, 1/3 of 12, 2/3 adult of 25, 1 adult of 90. anny's babies, at 0, are not supported."""
    muscle: float = 0.5
    """0 little muscle, 1 much."""
    weight: float = 0.5
    """0 thin, 1 heavy."""
    height: float = 0.5
    """Height of the body; the head grows with it."""
    proportions: float = 0.5
    """0 ideal, 1 uncommon."""
    african: float = 0.5
    """Share of African ancestry. The three shares are divided by their sum; all zero means equal shares."""
    asian: float = 0.5
    """Share of Asian ancestry."""
    caucasian: float = 0.5
    """Share of Caucasian ancestry."""

    def __post_init__(self) -> None:
        for name in self.names():
            _check_scale(name, getattr(self, name), least=LEAST_AGE if name == "age" else 0.0)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of all phenotypes, in the order of the fields."""
        return tuple(field.name for field in fields(cls))

    @classmethod
    def of(cls, values: Mapping[str, float]) -> Phenotype:
        """A phenotype from anny's `phenotype_kwargs`.

        Args:
            values: Numbers by name. Those of the body only (`BODY_ONLY`) are checked, then ignored.

        Raises:
            ConfigError: A name is unknown, or a value lies outside its scale.
        """
        unknown = sorted(set(values) - set(cls.names()) - set(BODY_ONLY))
        if unknown:
            raise ConfigError(f"{', '.join(unknown)}: unknown phenotype; use {', '.join(cls.names())}")
        for name in BODY_ONLY:
            _check_scale(name, values.get(name, 0.5), least=0.0)
        return cls(**{name: value for name, value in values.items() if name not in BODY_ONLY})

    def weights(self) -> tuple[Float[Tensor, "_"], ...]:
        """Interpolation weights of gender, age, muscle, weight, height, proportions and ancestry, in this order.

        The first six lie between evenly spaced anchors. Each tensor sums to one.
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
    """Identity coefficients of described people.

    α = Σ_ga w_g w_a (Σ_r w_r A_gar + Σ_mw w_m w_w (U_gamw + Σ_h w_h H_gamwh + Σ_p w_p P_gamwp)) − α₀, with the weights
    of `Phenotype.weights`, the rows of ancestry A, body U, height H and proportions P, and the average adult α₀.

    Args:
        phenotypes: One description per person.
        model: The packaged model; the table belongs to its components.

    Returns:
        Standard deviations; not differentiable.

    Raises:
        ModelMismatch: The model is not the packaged one.
    """
    expected = load_metadata(PHENOTYPES_FILE)["model_hash"]
    if not is_made_for(expected, model.fingerprint):
        raise ModelMismatch(
            f"phenotypes exist only for the packaged model mien-face (hash {expected[:12]}), not for {model.name!r} "
            f"({model.fingerprint[:12]}); make the face with mien-face and transfer it with `mien transfer`"
        )
    table = _table()
    rows = [blended_rows(table, phenotype) for phenotype in phenotypes]
    return torch.stack(rows).float() if rows else torch.zeros(0, model.counts[0])


@functools.lru_cache(maxsize=1)
def _table() -> dict[str, Tensor]:
    return load_tensors(PHENOTYPES_FILE)


def blended_rows(table: Mapping[str, Tensor], phenotype: Phenotype) -> Float[Tensor, "I"]:
    """The formula of `phenotype_identity` for one person, in double precision.

    Args:
        table: The tensors ancestry (A), body (U), height (H), proportions (P) and reference (α₀).
        phenotype: The person.
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
        raise ConfigError(f"phenotype {name}={value!r} is out of range; use a number from {least:.4g} to 1")


def _interpolated(value: float, anchors: int) -> Float[Tensor, "_"]:
    """Linear interpolation weights between evenly spaced anchors from 0 to 1."""
    position = value * (anchors - 1)
    lower = min(math.floor(position), anchors - 2)
    weights = torch.zeros(anchors, dtype=torch.float64)
    weights[lower], weights[lower + 1] = lower + 1 - position, position - lower
    return weights
