"""Networks at the start of a run, and which of their parts the run keeps fixed."""

from __future__ import annotations

from torch import nn

from mien.errors import ConfigError
from mien.morphable import MorphableModel
from mien.networks import DetailNetwork, FaceEncoder, load_detail, load_encoder
from mien.networks.backbones import load_imagenet
from mien.networks.encoder import extend_encoder
from mien.training.config import DetailNetworkSettings, EncoderSettings


def make_encoder(settings: EncoderSettings, model: MorphableModel) -> FaceEncoder:
    """Make the encoder at the start of a run; parameters that are not trained need no gradient.

    Raises:
        ConfigError: The settings contradict the encoder in `settings.start`.
        AssetError: Initial weights of the backbone cannot be loaded.
        FormatError: `settings.start` is damaged or of another kind.
        ModelMismatch: `settings.start` belongs to another face model.
    """
    encoder = _started(settings, model) if settings.start else _new(settings, model)
    for module in frozen_modules(encoder, settings):
        module.requires_grad_(False)
    return encoder


def _new(settings: EncoderSettings, model: MorphableModel) -> FaceEncoder:
    encoder = FaceEncoder(
        settings.backbone,
        model,
        image_size=settings.image_size,
        dropout=settings.dropout,
        points=settings.points,
        refiner=settings.refiner,
        refine_from=settings.refine_from,
    )
    if settings.weights != "random":
        load_imagenet(encoder.backbone, settings.weights, sha256=settings.weights_sha256)
    return encoder


def _started(settings: EncoderSettings, model: MorphableModel) -> FaceEncoder:
    """The encoder of `settings.start`, with points and refiner added if the settings ask for them."""
    encoder = load_encoder(model, settings.start)
    if (encoder.backbone_name, encoder.image_size) != (settings.backbone, settings.image_size):
        raise ConfigError(
            f"{settings.start} is {encoder.backbone_name} at {encoder.image_size} px, and the configuration has "
            f"{settings.backbone} at {settings.image_size} px; set encoder.backbone and encoder.image_size to those of "
            "the file."
        )
    if encoder.points is not None and not settings.points:
        raise ConfigError(f"{settings.start} has points as an input; set encoder.points = true.")
    if encoder.refiner is not None and not settings.refiner:
        raise ConfigError(f"{settings.start} has a refiner; set encoder.refiner = true.")
    if settings.points and (encoder.points is None or (settings.refiner and encoder.refiner is None)):
        encoder = extend_encoder(encoder, model, refiner=settings.refiner)
    encoder.refine_from = settings.refine_from
    encoder.requires_grad_(True)
    for layer in encoder.modules():
        if isinstance(layer, nn.Dropout):  # the file does not record the dropout of its training
            layer.p = settings.dropout
    return encoder


def frozen_modules(encoder: FaceEncoder, settings: EncoderSettings) -> list[nn.Module]:
    """The modules whose parameters and batch statistics a run does not change.

    Frozen blocks need no backward pass: with 5 blocks of EfficientNet-Lite0 a step takes half the time.
    """
    if settings.learn == "refiner":
        return [module for name, module in encoder.named_children() if name != "refiner"]
    return encoder.backbone.leading(settings.frozen_blocks)


def evaluation_modules(encoder: FaceEncoder, settings: EncoderSettings) -> list[nn.Module]:
    """The modules that stay in evaluation mode in training: the frozen ones, and batch norms if they are frozen."""
    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)] if settings.batchnorm == "frozen" else []
    return [*frozen_modules(encoder, settings), *norms]


def make_detail_network(settings: DetailNetworkSettings, model: MorphableModel) -> DetailNetwork:
    """Make the detail network at the start of a run.

    Raises:
        ConfigError: The settings contradict the network in `settings.start`.
        FormatError: `settings.start` is damaged or of another kind.
        ModelMismatch: `settings.start` belongs to another face model.
    """
    fresh = DetailNetwork(
        model.fingerprint, layout=settings.layout, displacement=settings.displacement, width=settings.width
    )
    if not settings.start:
        return fresh
    network = load_detail(model, settings.start).requires_grad_(True)
    for name in ("layout", "displacement", "width"):
        found, wanted = getattr(network, name), getattr(fresh, name)
        if found != wanted:
            raise ConfigError(
                f"{settings.start} has network.{name} = {found!r}, and the configuration has {wanted!r}; set "
                f"network.{name} to that of the file."
            )
    return network
