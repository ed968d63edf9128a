"""Backbones: published parameter names, sizes and weights, and errors in loading them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from mien.errors import AssetError, ConfigError
from mien.networks.backbones import EfficientNetLite0, ResNet50, load_imagenet, make_backbone


def test_resnet50_has_torchvisions_names_and_size() -> None:
    state = ResNet50().state_dict()
    # torchvision's resnet50 has 25,557,032 parameters, 2,049,000 of them in `fc`, and 320 entries with `fc`'s two.
    assert sum(p.numel() for p in ResNet50().parameters()) == 25_557_032 - 2_049_000
    assert len(state) == 320 - 2
    for name, shape in {
        "conv1.weight": (64, 3, 7, 7),
        "layer1.0.downsample.1.running_var": (256,),
        "layer3.5.conv2.weight": (256, 256, 3, 3),
        "layer4.2.bn3.bias": (2048,),
    }.items():
        assert state[name].shape == shape


@pytest.mark.parametrize(("name", "features"), [("resnet50", 2048), ("efficientnet_lite0", 1280)])
def test_odd_image_sizes_give_features_and_gradients(name: str, features: int) -> None:
    backbone = make_backbone(name)
    images = torch.rand(2, 3, 45, 33, requires_grad=True)
    output = backbone(images)
    assert output.shape == (2, features)
    output.sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_the_packages_weights_fit_and_separate_images() -> None:
    backbone = EfficientNetLite0().eval()
    load_imagenet(backbone, "package")
    with torch.no_grad():
        ramp = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
        output = backbone(torch.cat([ramp, ramp.mT, torch.full_like(ramp, 0.5)]))
    assert (output > 0).float().mean() > 0.05
    assert torch.cdist(output, output)[0, 1] > 1.0


def test_weights_of_a_file_are_read_without_their_classifier(tmp_path: Path) -> None:
    written = ResNet50()
    path = tmp_path / "resnet50.pth"
    torch.save(written.state_dict() | {"fc.weight": torch.zeros(3, 2048), "fc.bias": torch.zeros(3)}, path)
    read = ResNet50()
    load_imagenet(read, str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    assert torch.equal(read.state_dict()["layer2.1.conv1.weight"], written.state_dict()["layer2.1.conv1.weight"])


def test_wrong_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "lite0.pth"
    torch.save(EfficientNetLite0().state_dict(), path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    for backbone, source, sha256, message in (
        (ResNet50(), str(path), "", "holds no weights for ResNet50"),
        (EfficientNetLite0(), str(path), "0" * 64, rf"has the SHA-256 {found}, and encoder.weights_sha256='0{{64}}'"),
        (ResNet50(), str(tmp_path / "none.pth"), "", "no such weights file"),
        (ResNet50(), "package", "", "no package has weights of ResNet50"),
        (ResNet50(), "https://example.com/resnet50.pth", "", "only with a SHA-256"),
    ):
        with pytest.raises(AssetError, match=message):
            load_imagenet(backbone, source, sha256=sha256)


def test_an_unknown_backbone_is_named() -> None:
    with pytest.raises(ConfigError, match=r"resnet51.*resnet50, efficientnet_lite0"):
        make_backbone("resnet51")


def test_fixed_statistics_fold_into_the_convolution() -> None:
    torch.manual_seed(0)
    backbone = make_backbone("efficientnet_lite0")
    assert isinstance(backbone, EfficientNetLite0)
    block = backbone._blocks[1]
    conv, norm, x = block._expand_conv, block._bn0, torch.randn(2, 16, 9, 9)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    torch.nn.init.uniform_(norm.weight, 0.5, 2)
    torch.nn.init.normal_(norm.bias)
    norm.eval()
    torch.testing.assert_close(conv.normalised(x, norm), norm(conv(x)), rtol=1e-4, atol=1e-5)
    norm.train()
    before = norm.running_mean.clone()
    conv.normalised(x, norm)
    assert not torch.equal(norm.running_mean, before)  # statistics are learnt where they are not fixed


def test_a_new_resnet_starts_with_blocks_that_change_nothing() -> None:
    """Then the signal of the first step does not grow from block to block."""
    resnet = make_backbone("resnet50").eval()
    x = torch.rand(1, 256, 4, 4)
    torch.testing.assert_close(resnet.get_submodule("layer1.1")(x), x)
    assert float(resnet.get_submodule("conv1").weight.detach().std()) == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.05)


def test_joined_normalisation_follows_changed_weights() -> None:
    backbone, images = make_backbone("efficientnet_lite0").eval(), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = backbone(images)
    torch.testing.assert_close(before, backbone(images).detach(), rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        backbone.get_parameter("_conv_head.weight").mul_(2)
        backbone.get_buffer("_bn1.running_mean").add_(0.01)
        after = backbone(images)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, backbone(images).detach(), rtol=1e-4, atol=1e-6)
