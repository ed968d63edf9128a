"""Throughput of a training step, stage by stage: data, network, drawing and losses, backward, optimiser.

    python benchmarks/training.py --stage base --quick --json out/training.json

`--stage base` is the paper's full step: ResNet-50 at 224 pixels in bf16, drawn at 224, three losses, Adam. Batches of
drawn faces stand for photographs (same shapes, all losses of eq. 7 computed on them), so no data set is needed; they
are made before the clock starts, and `data_ms` says what one costs. The drawing's backward pass is timed apart from the
network's: the step is cut at the coefficients, which changes no number.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from mien.encoder import HEAD_UNITS
from mien.evaluation.report import Environment, markdown_table
from mien.morphable import load_model
from mien.perception import IdentityNetwork
from mien.training.base import BaseObjective, make_encoder
from mien.training.batch import FaceBatch
from mien.training.config import BaseConfig, load_config
from mien.training.loop import total
from mien.training.synthetic import SyntheticFaces

STAGES = ("network", "drawing and losses", "their backward", "network backward", "optimiser")
RENDERING = STAGES[1:3]


@dataclass(frozen=True)
class TrainingSpeed:
    """One line of the benchmark; times are medians over steps, milliseconds a batch."""

    stage: str
    backbone: str
    precision: str
    batch_size: int
    threads: int
    images_per_second: float
    render_and_loss_share: float
    stages: dict[str, float]
    data_ms: float
    environment: dict[str, object]


def timed_step(objective: BaseObjective, batch: FaceBatch, engine: torch.optim.Optimizer, *, bf16: bool) -> list[float]:
    """Seconds of the stages of one full step."""
    device = batch.images.device
    marks = [_now(device)]
    images = batch.images.to(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        said = objective.network(images)
    marks.append(_now(device))
    cut = {name: said[name].detach().requires_grad_() for name in HEAD_UNITS}
    loss = total(objective.losses(cut, batch, progress=1.0))
    marks.append(_now(device))
    loss.backward()
    marks.append(_now(device))
    torch.autograd.backward([said[name] for name in HEAD_UNITS], [cut[name].grad for name in HEAD_UNITS])
    marks.append(_now(device))
    engine.step()
    engine.zero_grad()
    marks.append(_now(device))
    return [end - start for start, end in itertools.pairwise(marks)]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--stage", choices=["base"], default="base")
    parser.add_argument("--config", type=Path, default=Path(__file__).parent.parent / "configs" / "paper_base.toml")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="five steps")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config = load_config(BaseConfig, options.config, changes=["encoder.weights=random"])
    model = load_model(config.model)
    encoder = make_encoder(config.encoder, model)
    faces = SyntheticFaces(model, size=config.encoder.image_size)
    start = time.perf_counter()
    batch = faces.batch(range(options.batch_size))
    data_seconds = time.perf_counter() - start
    device = torch.device(options.device)
    batch = replace(batch, truth=None).to(device)
    recognition = IdentityNetwork.from_assets() if config.loss.recognition else None
    objective = BaseObjective(
        encoder, model, weights=config.loss, recognition=recognition, validation=batch, device=device
    )
    encoder.to(memory_format=torch.channels_last).train()
    engine = torch.optim.AdamW(encoder.parameters(), lr=config.optimizer.learning_rate)
    bf16 = config.loop.precision == "bf16-mixed"
    timed_step(objective, batch, engine, bf16=bf16)  # allocations, and the choice of kernels
    count = 5 if options.quick else options.steps
    steps = [timed_step(objective, batch, engine, bf16=bf16) for _ in range(count)]
    medians = {name: 1e3 * statistics.median(s[k] for s in steps) for k, name in enumerate(STAGES)}
    whole = statistics.median(sum(s) for s in steps)
    speed = TrainingSpeed(
        stage=options.stage,
        backbone=config.encoder.backbone,
        precision=config.loop.precision,
        batch_size=options.batch_size,
        threads=options.threads,
        images_per_second=options.batch_size / whole,
        render_and_loss_share=sum(medians[name] for name in RENDERING) / sum(medians.values()),
        stages=medians,
        data_ms=1e3 * data_seconds,
        environment=asdict(Environment.current()),
    )
    print(f"{Environment.current()}\n")
    print(markdown_table(["stage", "ms a batch"], [[name, f"{ms:.0f}"] for name, ms in medians.items()]))
    print(
        f"\n{speed.backbone}, {speed.precision}, batch {speed.batch_size}: {speed.images_per_second:.2f} images/s, "
        f"drawing and losses {100 * speed.render_and_loss_share:.0f} % of the step"
    )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(asdict(speed)) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
