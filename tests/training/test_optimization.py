"""What the training loop uses without a run folder: rate, average, and an objective that a few photos satisfy."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from mien.morphable import load_model
from mien.training.coarse import CoarseObjective, landmarks68
from mien.training.config import CoarseConfig, Method, OptimizerSettings
from mien.training.config_file import load_config
from mien.training.initial_networks import evaluation_modules, make_encoder
from mien.training.optimization import initial_state, learning_rate, moving_average
from mien.training.synthetic.faces import SyntheticFaces


def test_indices_are_not_averaged() -> None:
    """With a decay of 0.9 torch's own average is one too low for one index in four."""
    network = nn.Module()
    network.register_buffer("indices", torch.arange(4096))
    network.register_buffer("statistic", torch.zeros(1))
    average = AveragedModel(network, multi_avg_fn=moving_average(0.9), use_buffers=True)
    for _ in range(2):
        average.update_parameters(network)
    network.get_buffer("statistic").fill_(1.0)
    average.update_parameters(network)
    assert torch.equal(average.module.get_buffer("indices"), torch.arange(4096))
    assert average.module.get_buffer("statistic").item() == pytest.approx(0.1)


@pytest.mark.parametrize("method", ["adam", "muon"])
def test_fused_steps_are_those_of_plain_adamw(method: Method) -> None:
    """In channels-last layout too, of which torch's fused step does not know."""
    start = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=4)).to(memory_format=torch.channels_last)
    image = torch.rand(2, 3, 9, 9).to(memory_format=torch.channels_last)

    def trained(fused: bool) -> list[torch.Tensor]:
        network = deepcopy(start)
        engine = initial_state(network, OptimizerSettings(method=method, weight_decay=0.1), half=False).optimizer
        assert all(group["fused"] for group in engine.param_groups)
        for group in engine.param_groups:
            group["fused"] = fused
        for _ in range(3):
            network(image).square().sum().backward()
            engine.step()
            engine.zero_grad()
        return [p.detach() for p in network.parameters()]

    for one, other in zip(trained(True), trained(False), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_the_rate_warms_up_and_follows_a_cosine() -> None:
    settings = OptimizerSettings(learning_rate=2.0, warmup=4, final_rate=0.1)
    assert learning_rate(0, 101, settings) == pytest.approx(0.5, rel=1e-3)
    assert learning_rate(50, 101, settings) == pytest.approx(2.0 * 0.55)
    assert learning_rate(100, 101, settings) == pytest.approx(0.2)
    constant = replace(settings, warmup=0, final_rate=1.0)
    assert learning_rate(0, 10, constant) == learning_rate(9, 10, constant) == 2.0


def test_eight_photos_can_be_memorised() -> None:
    """Points alone teach eight faces of the packaged model to less than 2 pixels of 224 (mean of 51 points)."""
    model = load_model()
    config = load_config(CoarseConfig, None, changes=["encoder.image_size=64", "encoder.frozen_blocks=3"])
    encoder = make_encoder(config.encoder, model)
    drawn = SyntheticFaces(model, size=64, seed=11).render(range(8))
    batch = replace(drawn, gt=None)
    weights = replace(config.loss, photometric=0.0, identity=0.0, points=1.0)
    fixed = evaluation_modules(encoder, config.encoder)
    objective = CoarseObjective(encoder, model, weights=weights, recognition=None, evaluation_modules=fixed)
    objective.train_mode()
    prepared = objective.prepare(batch)
    engine = torch.optim.Adam([p for p in encoder.parameters() if p.requires_grad], lr=2e-3)
    steps, error = 60, torch.inf
    for step in range(steps):
        engine.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
        pred = encoder(*prepared.inputs)
        if step == steps - 1:
            face = encoder.parameters_of(pred[-1]).coefficients(batch.camera)
            found = landmarks68(model, face, batch.camera).detach()
            error = float((found - batch.landmarks68_px)[:, 17:].norm(dim=-1).mean()) * 224 / 64
        loss = sum(term.weight * term.value for term in objective.losses(pred, prepared, progress=1.0))
        engine.zero_grad()
        loss.backward()  # pyright: ignore[reportAttributeAccessIssue]
        engine.step()
    assert error < 2.0
