"""Configuration of a training run: frozen dataclasses, one per section. `config_file` reads and writes them as TOML."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mien.errors import ConfigError
from mien.networks.backbones import BackboneName
from mien.networks.detail_unet import LEVELS, Displacement, Layout
from mien.networks.encoder import MAX_IMAGE_SIZE, MIN_IMAGE_SIZE, RefinerStart
from mien.networks.refiner import crop_size

Precision = Literal["auto", "32-true", "bf16-mixed"]
BatchNormMode = Literal["train", "frozen"]
CoarseSource = Literal["refined", "encoder"]
TrainedPart = Literal["all", "refiner"]
Method = Literal["adam", "muon"]
Sampling = Literal["bilinear", "hyperbolic"]


@dataclass(frozen=True)
class EncoderSettings:
    """The encoder and what of it is trained."""

    backbone: BackboneName = "efficientnet_lite0"
    """Network that reads the crop, see `mien.networks.backbones`."""
    image_size: int = 112
    """Side of the backbone's input, pixels."""
    weights: str = "package"
    """Initial weights of the backbone: a path, an https address, "package", or "random"."""
    weights_sha256: str = ""
    """Expected SHA-256 of the file with the initial weights; required for an https address."""
    dropout: float = 0.0
    """Share of features that are left out in training, before the heads and in the refiner."""
    batchnorm: BatchNormMode = "train"
    """Whether batch statistics are learnt or keep their initial values. With "frozen" a step does not depend on how a
    batch is divided over processes."""
    frozen_blocks: int = 0
    """Leading blocks of the backbone that keep their initial weights, together with the stem; 0 freezes nothing."""
    points: bool = False
    """Whether the encoder also gets the 468 detected points."""
    refiner: bool = False
    """Whether a refiner corrects the first prediction (`mien.networks.refiner`); needs points."""
    learn: TrainedPart = "all"
    """What is trained: everything that is not frozen otherwise, or the refiner alone."""
    refine_steps: int = 1
    """Refinement steps in training; each step gets a loss. `FaceEncoder.encode` takes three. Above 1 only with
    refiner."""
    refine_from: RefinerStart = "prediction"
    """What the refiner corrects: the "prediction" of the heads, or a fit to the "landmarks". The latter needs the fits
    of `mien data fit` (data.fits)."""
    start: str = ""
    """An encoder file to start from. Points and refiner may be added to it."""

    @property
    def crop_size(self) -> int:
        """Side of the crops in a batch, pixels."""
        return crop_size(self.image_size, refiner=self.refiner)


@dataclass(frozen=True)
class DataSettings:
    """The faces in a batch."""

    synthetic_share: float = 0.75
    """Share of synthetic faces in a batch; with 1 no store of photos is needed."""
    synthetic_faces: int = 0
    """Number of different synthetic faces in memory; each is rendered with a new camera and light every time. With 0
    every face is new."""
    synthetic: str = ""
    """A store of synthetic faces on disk; without one faces are synthesized during the run."""
    fits: bool = False
    """Whether the fits of `mien data fit` are the ground truth of the photos; photos without a fit are left out."""
    augment: bool = True
    """Whether photos are shifted, rotated, mirrored and passed through a simulated camera."""
    jitter: float = 1.0
    """Displacement of the crops in training, relative to the error of a rough detector. The crops of mien's own
    detector are far more exact: a network that may rely on them places faces better (docs/training.md)."""
    skins: str = ""
    """A file of `mien data skins`: skin colours of real faces for the synthetic ones."""
    photos_per_person: int = 1
    """Number of photos of a person that come together in a batch, for loss.person_shape and loss.person_albedo."""


@dataclass(frozen=True)
class CoarseLossSettings:
    """Weights of the encoder's losses. A loss of weight 0 is not computed."""

    photometric: float = 1.0
    """Eq. 4; weight 1 in eq. 7."""
    landmark: float = 1.0
    """Eq. 5, in halves of the crop's side; weight 1 in eq. 7, which is too little for photos alone (docs/paper.md)."""
    identity: float = 20.0
    """Eq. 6; weight 20 in eq. 7."""
    render_from: float = 0.0
    """Share of the run after which photometric and identity loss are added; with 1 no face is rendered."""
    render_size: int = 224
    """Side of the rendered image, pixels."""
    points: float = 0.0
    """Eq. 5 on all 468 points."""
    identity_prior: float = 1e-3
    """Mean square of the identity coefficients, in standard deviations."""
    expression_prior: float = 1e-3
    """Mean square of the blendshape weights over their typical 0.2."""
    albedo_prior: float = 1e-3
    """Mean square of the albedo coefficients, in standard deviations."""
    lighting_prior: float = 1e-2
    """Mean square of the light's colour: photos are white-balanced."""
    person_shape: float = 0.0
    """Distance between the vertices of the identities of photos of one person and their mean, centimetres, as several
    photos share one face in FML (Tewari et al., CVPR 2019). Needs data.photos_per_person above 1."""
    person_albedo: float = 0.0
    """The same for their albedo."""
    vertices: float = 0.0
    """Distance of the vertices to ground truth, centimetres. This loss and those below count synthetic faces only."""
    vertex_albedo: float = 0.0
    """Distance of the vertices' albedo to ground truth."""
    lighting: float = 0.0
    """L1 on lighting in the units of its head."""
    pose: float = 0.0
    """L1 on rotation, translation and scale in the units of their heads."""
    coefficients: float = 0.0
    """L1 on identity and expression in the units of their heads."""


@dataclass(frozen=True)
class DetailNetworkSettings:
    """The detail network."""

    layout: Layout = "texture"
    """"texture": the photo unwrapped onto the UV map; "image": photo and coarse rendering, as in the paper."""
    displacement: Displacement = "normal"
    """"normal": along the normal; "xyz": in three directions, as in the paper."""
    width: int = 16
    """Channels at full size; each halving doubles them."""
    image_size: int = 256
    """Side of the crops, pixels."""
    map_size: int = 224
    """Side of the maps, texels; in the image layout also the side of the network's input."""
    start: str = ""
    """A detail file to start from."""


@dataclass(frozen=True)
class CoarseInputSettings:
    """The coarse reconstruction below the maps. The encoder is frozen in every case."""

    source: CoarseSource = "refined"
    """"encoder": the encoder's prediction, as in the paper. "refined": for photos the encoder's prediction after the
    linear part of the fit (landmarks, lighting, albedo); for synthetic faces the ground truth plus the errors of such a
    fit."""
    identity_error: float = 0.25
    """Standard deviation of the error added to the identity of synthetic faces, in the unit of the encoder's head. The
    settings below are the same for the other heads."""
    expression_error: float = 0.15
    """Error of the expression."""
    albedo_error: float = 0.5
    """Error of the albedo."""
    lighting_error: float = 0.25
    """Error of the light."""
    pose_error: float = 0.04
    """Error of rotation, translation and scale."""


@dataclass(frozen=True)
class SyntheticReliefSettings:
    """Differences between the synthetic faces of a run and those of `mien data samples --detail`.

    Relief can only be learnt where it is visible. Pores finer than a pixel, and cheeks a little fuller than the
    model's, cannot be read off a photo; as targets they are noise beside the wrinkles.
    """

    wrinkle_strength: float = 1.5
    """Factor on the depth of wrinkles."""
    fullness_mm: float = 0.0
    """Largest change of the cheeks' fullness, millimetres."""
    texture_share: float = 0.25
    """Factor on the depth of pores and fine texture."""
    young_share: float = 0.1
    """Share of faces younger than a fifth of the scale, which have almost no wrinkles."""
    directed_share: float = 0.85
    """Share of faces in directed light."""


@dataclass(frozen=True)
class DetailLossSettings:
    """Weights of the detail network's losses. A loss of weight 0 is not computed."""

    photometric: float = 0.0
    """Eq. 4 on the rendered image; weight 1 in eq. 12."""
    landmark: float = 0.0
    """Eq. 5, in halves of the crop's side; weight 1 in eq. 12."""
    identity: float = 0.0
    """Eq. 6; weight 20 in eq. 12."""
    texel: float = 10.0
    """Eq. 4 on the UV map: every visible texel counts the same, and nothing has to be rendered."""
    offset_magnitude: float = 0.05
    """Eq. 8 of the texture offset; eq. 8 and 9 have weight 1e-4 in eq. 12."""
    offset_symmetry: float = 0.05
    """Eq. 9 of the texture offset."""
    unseen_symmetry: float = 0.5
    """Eq. 9 once more, for texels that the camera does not see while it sees their mirror image."""
    displacement_magnitude: float = 0.01
    """Eq. 8 of the displacement in millimetres."""
    displacement_symmetry: float = 0.01
    """Eq. 9 of the displacement in millimetres."""
    smooth_shape: float = 0.0
    """Eq. 10 on the vertices in centimetres; weight 0.08 in eq. 12."""
    smooth_albedo: float = 0.0
    """Eq. 11 on the vertices' albedo; weight 0.1 in eq. 12."""
    true_displacement: float = 10.0
    """Mean square distance to the ground-truth displacement, in millimetres. This loss and the two below count
    synthetic faces only. Absolute distances teach nothing here: most skin is flat, so the median of the possible
    displacements at a texel is 0."""
    true_slope: float = 50.0
    """Mean square distance of displacement differences between neighbouring texels, in millimetres: with it fine
    wrinkles count beside broad ones."""
    true_offset: float = 0.0
    """L1 to the ground-truth texture offset, also at invisible texels. It contradicts `texel` where a simulated camera
    has a tone curve that no lighting explains."""
    sampling: Sampling = "bilinear"
    """How vertices sample the maps; "hyperbolic" is the variant that the paper found unstable."""


@dataclass(frozen=True)
class OptimizerSettings:
    """Optimiser, learning rate and weight average."""

    method: Method = "adam"
    """"adam" (Kingma and Ba 2015; with weight decay AdamW), or "muon", which takes orthogonal steps for matrices
    (`mien.training.muon`) and Adam's steps for everything else."""
    learning_rate: float = 1e-3
    """Learning rate after the warm-up."""
    warmup: int = 100
    """Steps in which the learning rate grows linearly from 0."""
    final_rate: float = 0.01
    """Share of the learning rate that is left at the end of the cosine; 1 keeps the rate constant."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW)."""
    clip_norm: float = 1.0
    """Upper limit of the gradient's norm; 0 sets no limit."""
    ema_decay: float = 0.999
    """Decay of the exponential moving average of the weights, which is the result of the run; 0 takes the last
    weights."""


@dataclass(frozen=True)
class LoopSettings:
    """Length, intervals and device of a run."""

    steps: int = 1000
    """Number of steps."""
    epochs: float = 0.0
    """Passes over the store's training photos, instead of a number of steps; 0 takes steps."""
    batch_size: int = 32
    """Faces per step, over all processes together."""
    precision: Precision = "32-true"
    """"auto" is bf16 with float32 weights on a GPU, and on a CPU that multiplies bf16 faster than float32."""
    channels_last: bool = True
    """Memory layout of images: channels last."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the networks are trained."""
    workers: int = 1
    """Processes that prepare batches, per training process; with 0 the training process prepares them."""
    threads: int = 0
    """Threads of torch per process; with 0 torch decides."""
    seed: int = 0
    """Decides everything random of the run."""
    log_every: int = 20
    """Steps between rows of metrics.csv."""
    checkpoint_every: int = 200
    """Steps between checkpoints: the most that a killed run loses."""
    keep_checkpoints: int = 2
    """Number of checkpoints to keep, the newest ones."""
    sheet_every: int = 500
    """Steps between contact sheets."""
    validate_every: int = 500
    """Steps between validations."""


@dataclass(frozen=True)
class CoarseConfig:
    """A run of `mien train coarse`, which trains the encoder (the paper's base branch).

    Raises:
        ConfigError: A value is out of range, or two values contradict each other.
    """

    model: str = "mien-face"
    """Face model: a registered name or a path."""
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    data: DataSettings = field(default_factory=DataSettings)
    loss: CoarseLossSettings = field(default_factory=CoarseLossSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    loop: LoopSettings = field(default_factory=LoopSettings)

    def __post_init__(self) -> None:
        encoder = self.encoder
        _check_range("data.synthetic_share", self.data.synthetic_share, 0, 1)
        _check_minimum("data.jitter", self.data.jitter, 0)
        _check_range("loss.render_from", self.loss.render_from, 0, 1)
        _check_minimum("data.photos_per_person", self.data.photos_per_person, 1)
        _require(
            self.data.photos_per_person > 1 or not (self.loss.person_shape or self.loss.person_albedo),
            "loss.person_shape and loss.person_albedo compare photos of one person; set data.photos_per_person above 1",
        )
        _check_minimum("loss.render_size", self.loss.render_size, MIN_IMAGE_SIZE)
        _check_range("encoder.image_size", encoder.image_size, MIN_IMAGE_SIZE, MAX_IMAGE_SIZE)
        _check_minimum("encoder.frozen_blocks", encoder.frozen_blocks, 0)
        _require(0 <= encoder.dropout < 1, f"encoder.dropout={encoder.dropout} is out of range: it must lie in [0, 1)")
        _check_minimum("encoder.refine_steps", encoder.refine_steps, 1)
        _require(encoder.points or not encoder.refiner, "encoder.refiner needs encoder.points = true")
        for needs_refiner, setting in (
            (encoder.refine_steps > 1, f"encoder.refine_steps={encoder.refine_steps}"),
            (encoder.learn == "refiner", 'encoder.learn="refiner"'),
        ):
            _require(encoder.refiner or not needs_refiner, f"{setting} needs encoder.refiner = true")
        _require(
            encoder.refine_from == "prediction" or (self.data.fits and self.data.synthetic_share == 0),
            f"encoder.refine_from={encoder.refine_from!r} needs data.fits = true and data.synthetic_share = 0",
        )
        _require(
            not (self.data.synthetic and self.data.synthetic_faces),
            "data.synthetic_faces has no effect with data.synthetic; set one of the two",
        )
        check_loop(self.loop, self.optimizer)


@dataclass(frozen=True)
class DetailConfig:
    """A run of `mien train detail`, which trains the detail network (the paper's augmented branch).

    Raises:
        ConfigError: A value is out of range, or two values contradict each other.
    """

    model: str = "mien-face"
    """Face model: a registered name or a path."""
    network: DetailNetworkSettings = field(default_factory=DetailNetworkSettings)
    coarse: CoarseInputSettings = field(default_factory=CoarseInputSettings)
    relief: SyntheticReliefSettings = field(default_factory=SyntheticReliefSettings)
    data: DataSettings = field(default_factory=DataSettings)
    loss: DetailLossSettings = field(default_factory=DetailLossSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    loop: LoopSettings = field(default_factory=LoopSettings)

    def __post_init__(self) -> None:
        step, size = 2**LEVELS, self.network.map_size
        _check_range("data.synthetic_share", self.data.synthetic_share, 0, 1)
        _require(size >= step and size % step == 0, f"network.map_size={size} must be a multiple of {step}")
        _check_minimum("network.image_size", self.network.image_size, MIN_IMAGE_SIZE)
        texel_on_screen = self.loss.texel and self.network.layout == "image"
        _require(
            not texel_on_screen, 'loss.texel needs network.layout = "texture"; use loss.photometric with layout "image"'
        )
        _require(
            not self.data.synthetic,
            "data.synthetic is for `mien train coarse` only, since faces in a store have no relief; set "
            "data.synthetic_faces",
        )
        check_loop(self.loop, self.optimizer)


def check_loop(loop: LoopSettings, optimizer: OptimizerSettings) -> None:
    """Check the values that both kinds of run have.

    Raises:
        ConfigError: A value is out of range.
    """
    for name in ("batch_size", "log_every", "checkpoint_every", "keep_checkpoints", "sheet_every", "validate_every"):
        _check_minimum(f"loop.{name}", getattr(loop, name), 1)
    _check_minimum("loop.epochs", loop.epochs, 0)
    _require(loop.steps >= 1 or loop.epochs > 0, "loop.steps or loop.epochs must be positive")
    _require(
        not loop.epochs or loop.steps == LoopSettings.steps,
        f"loop.steps={loop.steps} and loop.epochs={loop.epochs:g} both give the length of the run; remove one of them",
    )
    for name in ("workers", "threads", "seed"):
        _check_minimum(f"loop.{name}", getattr(loop, name), 0)
    _require(optimizer.learning_rate > 0, "optimizer.learning_rate must be positive")
    for name in ("warmup", "final_rate", "weight_decay", "clip_norm"):
        _check_minimum(f"optimizer.{name}", getattr(optimizer, name), 0)
    decay = optimizer.ema_decay
    _require(0 <= decay < 1, f"optimizer.ema_decay={decay} is out of range: it must lie in [0, 1)")


def _check_range(name: str, value: float | int, low: int, high: int) -> None:
    _require(low <= value <= high, f"{name}={value} is out of range: it must lie in [{low}, {high}]")


def _check_minimum(name: str, value: float | int, least: int) -> None:
    rule = "must not be negative" if least == 0 else f"must be at least {least}"
    _require(value >= least, f"{name}={value} is out of range: it {rule}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(f"{message}.")
