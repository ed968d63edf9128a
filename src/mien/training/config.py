"""What a training run is made of: frozen dataclasses, filled from a TOML file and `--set section.key=value`.

An unknown key is an error that names the nearest known one. `dump` writes the resolved configuration as TOML again.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from mien.errors import ConfigError
from mien.networks.backbones import BackboneName
from mien.networks.detail_unet import LEVELS, Displacement, Layout
from mien.networks.refiner import crop_size

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

Precision = Literal["auto", "32-true", "bf16-mixed"]
BatchNormMode = Literal["train", "frozen"]
BaseSource = Literal["refined", "encoder"]
Learning = Literal["all", "refiner"]
Method = Literal["adam", "muon"]
Sampling = Literal["bilinear", "hyperbolic"]
T = TypeVar("T")


@dataclass(frozen=True)
class EncoderSettings:
    """The network."""

    backbone: BackboneName = "efficientnet_lite0"
    image_size: int = 112
    """Side of the picture that the network sees, pixels."""
    weights: str = "package"
    """Where the backbone starts: a path, an https address, "package", or "random"."""
    weights_sha256: str = ""
    dropout: float = 0.0
    """Share of features that are left out in training, before the heads and in the second look."""
    batchnorm: BatchNormMode = "train"
    """Whether batch statistics are learnt or stay those of the start; frozen makes a step independent of how a
    batch is divided over processes."""
    frozen_blocks: int = 0
    """Leading blocks of the backbone that stay as they start, with the stem; 0 freezes nothing."""
    points: bool = False
    """Whether the network also sees the 468 points that perception finds."""
    refiner: bool = False
    """Whether it looks again, at the crop unwrapped by its first answer (`mien.networks.refiner`); needs points."""
    learn: Learning = "all"
    """What is trained: all that is not frozen otherwise, or the second look alone, over a first one that stays."""
    refine_steps: int = 1
    """How many second looks are learnt from at each face, each at the chart of the answer before (`FaceEncoder.encode`
    takes three); above 1 only with look."""
    start: str = ""
    """An encoder file to continue from, for a second recipe; points and a second look may be new to it."""

    @property
    def crop_size(self) -> int:
        """Side of the crops that batches hold, pixels."""
        return crop_size(self.image_size, refiner=self.refiner)


@dataclass(frozen=True)
class DataSettings:
    """What a batch is made of."""

    synthetic_share: float = 0.75
    """Share of the batch that is drawn, not photographed; 1 needs no store."""
    drawn_faces: int = 0
    """Different drawn faces; each is photographed anew whenever it comes round. 0 draws every face anew."""
    drawn: str = ""
    """A store of `mien data draw` to take drawn faces from; without one they are drawn as the run goes on."""
    augment: bool = True
    """Whether photos are moved, turned, mirrored and shown through another camera."""
    jitter: float = 1.0
    """How far crops are off their place in training, relative to what a rough detector would cause. The crops of this
    package's perception hardly are: a network that may trust them places faces better (docs/training.md)."""
    skins: str = ""
    """A file of `mien data skins`: colours of real faces for the synthetic ones."""


@dataclass(frozen=True)
class BaseLossSettings:
    """Weights of the base branch's losses. A loss of weight 0 is not computed."""

    pixel: float = 1.0
    """Eq. 4, in eq. 7 with weight 1."""
    landmark: float = 1.0
    """Eq. 5, weight 1 in eq. 7; a unit is half the crop's side."""
    recognition: float = 20.0
    """Eq. 6, weight 20 in eq. 7."""
    render_from: float = 0.0
    """Share of the run after which pixel and recognition loss join; 1 never draws a face."""
    render_size: int = 224
    """Side of the drawn picture, pixels."""
    points: float = 0.0
    """Eq. 5 on all 468 points of the face mesh."""
    identity_prior: float = 1e-3
    """On the mean square of the coefficients, which are standard deviations; so for albedo."""
    expression_prior: float = 1e-3
    """On the mean square of the strengths over their typical 0.2."""
    albedo_prior: float = 1e-3
    lighting_prior: float = 1e-2
    """On the mean square of the light's colour: photos are white-balanced."""
    vertices: float = 0.0
    """Distance of the vertices to those of the true coefficients, centimetres; synthetic faces only, as all below."""
    vertex_albedo: float = 0.0
    lighting: float = 0.0
    pose: float = 0.0
    coefficients: float = 0.0
    """L1 on identity and expression in the units of their heads."""


@dataclass(frozen=True)
class DetailNetworkSettings:
    """The double-head U-Net of the augmented branch."""

    layout: Layout = "texture"
    """"texture": the photo unwrapped onto the chart; "image": photo and base rendering, as in the paper."""
    displacement: Displacement = "normal"
    """Along the normal, or "xyz" as in the paper."""
    width: int = 16
    """Channels at full size; each halving doubles them."""
    image_size: int = 256
    """Side of the crops, pixels."""
    map_size: int = 224
    """Side of the maps in texels; in the image layout the network's pictures have this side too."""
    start: str = ""
    """A detail file to continue from."""


@dataclass(frozen=True)
class DetailBaseSettings:
    """Where the base reconstruction under the maps comes from. The encoder is frozen in every case."""

    source: BaseSource = "refined"
    """"encoder": what the encoder says, as in the paper. "refined": of photos, the encoder's answer after the closed
    part of the fit (landmarks, light, albedo); of drawn faces the truth, off by what such a fit errs."""
    identity_error: float = 0.25
    """Standard deviations of the errors that drawn bases are given, in the units of the encoder's heads."""
    expression_error: float = 0.15
    albedo_error: float = 0.5
    lighting_error: float = 0.25
    pose_error: float = 0.04


@dataclass(frozen=True)
class DrawnReliefSettings:
    """What the drawn faces of a training run have that those of `mien data synth --detail` have otherwise.

    To learn from, relief has to show: pores finer than a pixel and cheeks a little fuller than the model's cannot be
    read off a photo, and as targets they are noise beside the folds.
    """

    fold_strength: float = 1.5
    """Multiplies the depth of folds."""
    fullness_mm: float = 0.0
    texture_share: float = 0.25
    """Multiplies the depth of pores and fine texture."""
    young_share: float = 0.1
    """Faces younger than a fifth of the scale, which hardly have folds."""
    directed_share: float = 0.85
    """How often the light has a direction."""


@dataclass(frozen=True)
class DetailLossSettings:
    """Weights of the augmented branch's losses. A loss of weight 0 is not computed."""

    pixel: float = 0.0
    """Eq. 4 on the drawn picture, in eq. 12 with weight 1."""
    landmark: float = 0.0
    """Eq. 5, weight 1 in eq. 12; a unit is half the crop's side."""
    recognition: float = 0.0
    """Eq. 6, weight 20 in eq. 12."""
    texel: float = 10.0
    """Eq. 4 on the chart: every texel that is seen counts the same, and no picture has to be drawn."""
    offset_magnitude: float = 0.05
    """Eq. 8 of the texture offset; in eq. 12 the weights of eq. 8 and 9 are 1e-4."""
    offset_symmetry: float = 0.05
    """Eq. 9 of the texture offset."""
    unseen_symmetry: float = 0.5
    """Eq. 9 once more, of texels that the camera does not see while their mirror image is seen."""
    displacement_magnitude: float = 0.01
    """Eq. 8 of the displacement in millimetres."""
    displacement_symmetry: float = 0.01
    smooth_shape: float = 0.0
    """Eq. 10 on the vertices in centimetres, in eq. 12 with weight 0.08."""
    smooth_albedo: float = 0.0
    """Eq. 11 on the vertices' albedo, in eq. 12 with weight 0.1."""
    true_displacement: float = 10.0
    """Mean square distance to the known displacement in millimetres; drawn faces only, as the two below. Absolute
    distances teach nothing at all here: most of a skin is flat, and the median of what may lie at a texel is 0."""
    true_slope: float = 50.0
    """Mean square distance of its differences from texel to texel, millimetres: fine folds count beside broad ones."""
    true_offset: float = 0.0
    """L1 to the known texture offset, also where it is not seen. It contradicts `texel` where a drawn camera has a
    response of its own, which no light explains."""
    sampling: Sampling = "bilinear"
    """How vertices sample the maps; "hyperbolic" is the variant that the paper found unstable."""


@dataclass(frozen=True)
class OptimizerSettings:
    """Steps, and the average that is kept."""

    method: Method = "adam"
    """"adam" (Kingma and Ba 2015), with decoupled weight decay where it is not 0, or "muon", which takes orthogonal
    steps in matrices (`mien.training.muon`) and Adam's in all else."""
    learning_rate: float = 1e-3
    warmup: int = 100
    """Steps in which the rate grows from 0."""
    final_rate: float = 0.01
    """Share of the rate at the end of the cosine; 1 keeps it constant."""
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    """The gradient is scaled down to this norm; 0 leaves it as it is."""
    ema_decay: float = 0.999
    """Of the average of the weights that is kept in the end; 0 keeps the last."""


@dataclass(frozen=True)
class LoopSettings:
    """How long, how often, and where."""

    steps: int = 1000
    """Ignored where epochs are given."""
    epochs: float = 0.0
    """Passes over the store's training photos."""
    batch_size: int = 32
    """Over all processes together."""
    precision: Precision = "32-true"
    """"auto" is bf16 with float32 weights on a GPU, and on a CPU that multiplies it faster than float32."""
    channels_last: bool = True
    device: Literal["cpu", "cuda"] = "cpu"
    workers: int = 1
    """Processes that prepare batches for each training process; 0 prepares them there."""
    threads: int = 0
    """Threads of torch in each process; 0 leaves it to torch."""
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 200
    """Steps, and so the most that a kill costs."""
    keep_checkpoints: int = 2
    sheet_every: int = 500
    validate_every: int = 500


@dataclass(frozen=True)
class BaseConfig:
    """A run of `mien train base`."""

    model: str = "mien-face"
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    data: DataSettings = field(default_factory=DataSettings)
    loss: BaseLossSettings = field(default_factory=BaseLossSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    loop: LoopSettings = field(default_factory=LoopSettings)

    def __post_init__(self) -> None:
        _require(0 <= self.data.synthetic_share <= 1, "data.synthetic_share must lie in [0, 1]")
        _require(self.data.jitter >= 0, "data.jitter must not be negative")
        _require(0 <= self.loss.render_from <= 1, "loss.render_from must lie in [0, 1]")
        _require(self.loss.render_size >= 32, "loss.render_size must be at least 32")
        _require(self.encoder.image_size >= 32, "encoder.image_size must be at least 32")
        _require(self.encoder.frozen_blocks >= 0, "encoder.frozen_blocks must not be negative")
        _require(0 <= self.encoder.dropout < 1, "encoder.dropout must lie in [0, 1)")
        _require(self.encoder.points or not self.encoder.refiner, "encoder.refiner needs encoder.points = true")
        second = self.encoder.learn == "refiner"
        _require(self.encoder.refine_steps >= 1, "encoder.refine_steps must be at least 1")
        _require(
            self.encoder.refiner or self.encoder.refine_steps == 1,
            "encoder.refine_steps above 1 needs encoder.refiner = true",
        )
        _require(self.encoder.refiner or not second, 'encoder.learn = "refiner" needs encoder.refiner = true')
        _require(not (self.data.drawn and self.data.drawn_faces), "data.drawn_faces has no use with data.drawn")
        check_loop(self.loop, self.optimizer)


@dataclass(frozen=True)
class DetailConfig:
    """A run of `mien train detail`."""

    model: str = "mien-face"
    network: DetailNetworkSettings = field(default_factory=DetailNetworkSettings)
    base: DetailBaseSettings = field(default_factory=DetailBaseSettings)
    relief: DrawnReliefSettings = field(default_factory=DrawnReliefSettings)
    data: DataSettings = field(default_factory=DataSettings)
    loss: DetailLossSettings = field(default_factory=DetailLossSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    loop: LoopSettings = field(default_factory=LoopSettings)

    def __post_init__(self) -> None:
        step = 2**LEVELS
        _require(0 <= self.data.synthetic_share <= 1, "data.synthetic_share must lie in [0, 1]")
        _require(self.network.map_size >= step and self.network.map_size % step == 0,
                 f"network.map_size must be a multiple of {step}")  # fmt: skip
        _require(self.network.image_size >= 32, "network.image_size must be at least 32")
        texel = self.loss.texel and self.network.layout == "image"
        _require(not texel, 'loss.texel needs network.layout = "texture"; use loss.pixel with "image"')
        _require(not self.data.drawn, "data.drawn is for the base branch: its faces have no relief")
        check_loop(self.loop, self.optimizer)


def check_loop(loop: LoopSettings, optimizer: OptimizerSettings) -> None:
    """Raise ConfigError for values outside their range; shared by every branch's configuration."""
    for name in ("batch_size", "log_every", "checkpoint_every", "keep_checkpoints", "sheet_every", "validate_every"):
        _require(getattr(loop, name) >= 1, f"loop.{name} must be at least 1")
    _require(loop.epochs >= 0, "loop.epochs must not be negative")
    _require(loop.steps >= 1 or loop.epochs > 0, "loop.steps or loop.epochs must be positive")
    for name in ("workers", "threads", "seed"):
        _require(getattr(loop, name) >= 0, f"loop.{name} must not be negative")
    _require(optimizer.learning_rate > 0, "optimizer.learning_rate must be positive")
    for name in ("warmup", "final_rate", "weight_decay", "clip_norm"):
        _require(getattr(optimizer, name) >= 0, f"optimizer.{name} must not be negative")
    _require(0 <= optimizer.ema_decay < 1, "optimizer.ema_decay must lie in [0, 1)")


def _require(condition: bool, rule: str) -> None:
    if not condition:
        raise ConfigError(f"{rule}.")


def load_config(kind: type[T], path: Path | None, *, changes: Sequence[str] = ()) -> T:
    """Read a configuration from TOML and apply changes `section.key=value`; ConfigError for whatever does not fit."""
    content: dict[str, Any] = {}
    if path is not None:
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{path} cannot be read as TOML: {error}") from error
    for change in changes:
        _apply(content, change)
    return _build(kind, content, where="")


def _apply(content: dict[str, Any], change: str) -> None:
    name, equals, text = change.partition("=")
    if not equals:
        raise ConfigError(f"--set {change}: write it as section.key=value.")
    *sections, key = name.strip().split(".")
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise ConfigError(f"--set {change}: {section!r} is a value, not a section.")
    try:
        content[key] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        content[key] = text.strip()  # words need no quotes on a command line


def _build(kind: type[T], content: dict[str, Any], *, where: str) -> T:
    hints = get_type_hints(kind)
    known = [f.name for f in fields(kind)]  # pyright: ignore[reportArgumentType]
    values: dict[str, Any] = {}
    for key, value in content.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {where + near[0]!r}?" if near else f"there are: {', '.join(known)}."
            raise ConfigError(f"{where + key!r} is not a setting; {hint}")
        values[key] = _converted(hints[key], value, f"{where}{key}")
    return kind(**values)


def _converted(wanted: Any, value: Any, name: str) -> Any:
    if is_dataclass(wanted):
        if not isinstance(value, dict):
            raise ConfigError(f"{name!r} is a section, write [{name}].")
        return _build(wanted, value, where=f"{name}.")  # pyright: ignore[reportArgumentType]
    if get_origin(wanted) is Literal:
        if value not in get_args(wanted):
            raise ConfigError(f"{name} must be one of {', '.join(map(str, get_args(wanted)))}, got {value!r}.")
        return value
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise ConfigError(f"{name} must be of type {wanted.__name__}, got {value!r}.")
    return value


def dump(config: object) -> str:
    """The configuration as TOML that `load_config` reads back to an equal one."""
    content = asdict(config)  # pyright: ignore[reportArgumentType]
    plain = [f"{k} = {_literal(v)}" for k, v in content.items() if not isinstance(v, dict)]
    sections = [
        "\n".join([f"[{name}]", *(f"{k} = {_literal(v)}" for k, v in section.items())])
        for name, section in content.items()
        if isinstance(section, dict)
    ]
    return "\n\n".join(["\n".join(plain), *sections]) + "\n"


@dataclass(frozen=True)
class SettingChange:
    """A setting, as section.key, and how it was written before."""

    name: str
    before: str


def differences(before: str, after: str) -> list[SettingChange]:
    """In which settings two texts of `dump` differ; ValueError for what is no TOML."""
    old, new = _flat(before), _flat(after)
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    return [SettingChange(name, old.get(name, "nothing")) for name in names]


def _flat(text: str) -> dict[str, str]:
    content = tomllib.loads(text)
    return {
        f"{name}.{key}" if isinstance(value, dict) else name: _literal(single)
        for name, value in content.items()
        for key, single in (value.items() if isinstance(value, dict) else [(name, value)])
    }


def _literal(value: str | int | float | bool) -> str:
    # TOML writes strings, numbers and truth values as JSON does, and reads 1e-05.
    return json.dumps(value, ensure_ascii=False)
