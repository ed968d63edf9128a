"""Muon: orthogonal steps for matrices, AdamW for everything else."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from mien.training.muon import MATCH_ADAM, Muon, is_matrix, orthogonal

BETAS = (0.9, 0.999)


class Network(nn.Module):
    """A matrix, a convolution, a depthwise convolution, a norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(6, 4)
        self.mix = nn.Conv2d(4, 8, 3)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grid = self.wide(x)[..., None, None].expand(-1, -1, 5, 5)
        return self.head(self.norm(self.depthwise(self.mix(grid))[..., 0, 0]))


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6), (1, 7)])
def test_all_directions_get_the_same_length(shape: tuple[int, int]) -> None:
    """Singular values that span one and a half orders of magnitude end near 1, and the singular vectors stay."""
    generator = torch.Generator().manual_seed(3)
    u, _, vh = torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False)
    matrix = u * torch.logspace(0, -1.5, min(shape)) @ vh
    found = u.mT @ orthogonal(matrix) @ vh.mT
    assert ((found.diagonal() > 0.6) & (found.diagonal() < 1.3)).all(), found.diagonal()
    torch.testing.assert_close(found - torch.diag(found.diagonal()), torch.zeros_like(found), atol=1e-4, rtol=0)
    assert not orthogonal(torch.zeros(shape)).any()
    half = orthogonal(matrix.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), orthogonal(matrix), atol=0.06, rtol=0)


def test_muon_takes_matrices_and_adamw_the_rest() -> None:
    torch.manual_seed(0)
    network = Network()
    assert [name for name, p in network.named_parameters() if is_matrix(name, p)] == ["wide.weight", "mix.weight"]
    assert is_matrix("backbone._conv_head.weight", torch.zeros(8, 4, 1, 1))
    assert not is_matrix("heads.identity.weight", torch.zeros(8, 4))
    twin = copy.deepcopy(network)
    muon = Muon(network, lr=0.01, betas=BETAS, weight_decay=0.1)
    adam = AdamW(twin.parameters(), lr=0.01, betas=BETAS, weight_decay=0.1)
    before = copy.deepcopy(network.state_dict())
    x = torch.randn(16, 6)
    for net, optimizer in ((network, muon), (twin, adam)):
        net(x).square().mean().backward()
        optimizer.step()
    for name, weight in network.named_parameters():
        if not is_matrix(name, weight):
            assert torch.equal(weight, dict(twin.named_parameters())[name]), name
    step = (network.mix.weight - (1 - 0.01 * 0.1) * before["mix.weight"]).flatten(1)
    # About as long as a step of Adam, 0.2 of the rate; shorter, since the gradient's eight rows hold few directions.
    assert float(step.detach().square().mean().sqrt()) == pytest.approx(0.01 * MATCH_ADAM, rel=0.4)
    assert network.mix.weight.grad is None


def test_steps_follow_the_gradient_ahead_of_the_momentum() -> None:
    """Nesterov: the step is 0.05 of the gradient plus 0.95 of the momentum that already includes it."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 4, bias=False)
    muon = Muon(layer, lr=0.01, betas=BETAS, weight_decay=0.0)
    first, second = torch.randn(4, 6), torch.randn(4, 6)
    for gradient in (first, second):
        before = layer.weight.detach().clone()
        layer.weight.grad = gradient.clone()
        muon.step()
    momentum = 0.95 * 0.05 * first + 0.05 * second
    expected = orthogonal(0.05 * second + 0.95 * momentum)
    step = (before - layer.weight.detach()) / (0.01 * MATCH_ADAM * 6**0.5)
    torch.testing.assert_close(step, expected, atol=1e-4, rtol=1e-3)
    assert (orthogonal(momentum) - expected).abs().max() > 0.02  # the step without Nesterov differs


def test_several_steps_are_those_of_torchs_own() -> None:
    """`torch.optim.Muon` (since 2.9) accepts matrices only, and iterates in bfloat16."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon to compare with")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(12, 20, bias=False), nn.SiLU(), nn.Linear(20, 7, bias=False))
    twin, start, x = copy.deepcopy(network), copy.deepcopy(network.state_dict()), torch.randn(64, 12)
    ours = Muon(network, lr=0.02, betas=BETAS, weight_decay=0.3, iterate_in=torch.bfloat16)
    theirs = torch.optim.Muon(
        twin.parameters(), lr=0.02, weight_decay=0.3, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for _ in range(6):
        for net, optimizer in ((network, ours), (twin, theirs)):
            net(x).sub(1).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    for name, weight in network.named_parameters():
        moved = (weight - start[name]).norm()
        assert (weight - twin.get_parameter(name)).norm() < 0.03 * moved, name


def test_it_learns_and_leaves_frozen_weights() -> None:
    torch.manual_seed(0)
    network, x = Network(), torch.randn(64, 6)
    goal = torch.stack([x[:, 0] * x[:, 1], x[:, 2]], dim=1)
    network.mix.requires_grad_(False)
    before = network.mix.weight.clone()
    muon = Muon(network, lr=0.02, betas=BETAS, weight_decay=0.0)
    losses = []
    for _ in range(60):
        loss = (network(x) - goal).square().mean()
        loss.backward()
        muon.step()
        muon.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert torch.equal(network.mix.weight, before)


def test_copies_and_loaded_states_continue_equally() -> None:
    torch.manual_seed(0)
    network, x = Network(), torch.randn(16, 6)

    def taken(net: nn.Module, optimizer: Muon) -> None:
        net(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    muon = Muon(network, lr=0.02, betas=BETAS, weight_decay=0.1, iterate_in=torch.bfloat16)
    taken(network, muon)
    loaded = copy.deepcopy(network)
    other = Muon(loaded, lr=0.5, betas=BETAS, weight_decay=0.0, iterate_in=torch.bfloat16)
    other.load_state_dict(copy.deepcopy(muon.state_dict()))
    copied, another = copy.deepcopy((network, muon))
    for net, optimizer in ((network, muon), (loaded, other), (copied, another)):
        taken(net, optimizer)
    for name, weight in network.named_parameters():
        assert torch.equal(weight, loaded.get_parameter(name)), name
        assert torch.equal(weight, copied.get_parameter(name)), name


def test_a_closure_is_refused() -> None:
    with pytest.raises(TypeError, match="closure"):
        Muon(Network(), lr=0.1, betas=BETAS, weight_decay=0.0).step(lambda: None)
