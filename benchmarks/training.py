"""Throughput of a training step, stage by stage: data, network, rendering and losses, backward, optimiser.

    python benchmarks/training.py --stage coarse --quick --json out/training.json
    python benchmarks/training.py --stage detail --quick --json out/training.json
    python benchmarks/training.py --stage detail --old ../old

`--stage coarse` is the paper's full step: ResNet-50 at 224 pixels, in bf16 where that is faster, rendered at 224, three
losses, Adam. `--stage detail` is that of the first detail stage of `configs/packaged_detail.toml`, including the frozen
coarse reconstruction ("preparation"); `--config configs/paper_detail.toml` is the paper's. Batches of synthetic faces
take the place of photos (same shapes, all losses computed on them), so no data set is needed; they are made before the
clock starts, and `data_ms` is what one costs. What a run computes once per photo is computed before the clock starts,
too: the steps are those from the second epoch on. The rendering's backward pass is timed apart from the network's: the
step is cut at the network's prediction, which changes no number.

`--old` runs this benchmark in another checkout and in this one by turns, and compares processor times of one thread.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from mien.evaluation.report import Environment, markdown_table
from mien.morphable import load_model
from mien.networks import load_encoder
from mien.networks.crop_space import mean_face_frame, to_crop_space
from mien.perception import FaceMesh
from mien.training.allocation import keep_freed_memory
from mien.training.coarse import CoarseObjective
from mien.training.config import CoarseConfig, DetailConfig, OptimizerSettings
from mien.training.config_file import load_config
from mien.training.data.batch import FaceBatch, join_batches
from mien.training.detail import DetailObjective
from mien.training.initial_networks import make_detail_network, make_encoder
from mien.training.loop import weighted_sum
from mien.training.objective import Objective, P
from mien.training.optimization import initial_state
from mien.training.precision import chosen_precision
from mien.training.recipe import load_recipe
from mien.training.run import keeps_coarse, make_coarse_objective, make_detail_objective
from mien.training.synthetic.detailed_faces import DetailedFaces
from mien.training.synthetic.faces import SyntheticFaces

CONFIGS = Path(__file__).parent.parent / "configs"
PACKAGED_DETAIL = CONFIGS / "packaged_detail.toml"
STAGES = ("preparation", "network", "rendering and losses", "their backward", "network backward", "optimiser")
RENDERING = STAGES[2:4]


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


def timed_step(objective: Objective[P], batch: FaceBatch, engine: torch.optim.Optimizer, *, bf16: bool) -> list[float]:
    """Seconds of the stages of one full step."""
    device = batch.images.device
    times = [_now(device)]
    prepared = objective.prepare(batch)
    times.append(_now(device))
    inputs = [x.to(memory_format=torch.channels_last) if x.ndim == 4 else x for x in prepared.inputs]
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        prediction = objective.predict(objective.network, tuple(inputs))
    times.append(_now(device))
    # The encoder predicts once per refinement step, the detail network once.
    steps = prediction if isinstance(prediction, list) else [prediction]
    cut = [{name: value.detach().requires_grad_() for name, value in step.items()} for step in steps]
    loss = weighted_sum(objective.losses(cut if steps is prediction else cut[0], prepared, progress=1.0))
    times.append(_now(device))
    loss.backward()
    times.append(_now(device))
    # The prediction of a frozen network passes no gradient on.
    pairs = [(step[name], copy[name].grad) for step, copy in zip(steps, cut, strict=True) for name in step]
    reached = [(value, grad) for value, grad in pairs if grad is not None and value.requires_grad]
    torch.autograd.backward([value for value, _ in reached], [grad for _, grad in reached])
    times.append(_now(device))
    engine.step()
    engine.zero_grad()
    times.append(_now(device))
    return [end - start for start, end in itertools.pairwise(times)]


@dataclass(frozen=True)
class Stage:
    """What is timed: an objective and a batch for it."""

    objective: CoarseObjective | DetailObjective
    batch: FaceBatch
    name: str
    """Of the network."""
    precision: str
    rate: float
    data_seconds: float


def coarse_stage(path: Path, *, batch_size: int, device: torch.device) -> Stage:
    config = load_config(CoarseConfig, path, changes=["encoder.weights=random", "encoder.start="])
    model = load_model(config.model)
    encoder = make_encoder(config.encoder, model)
    mesh = FaceMesh.from_assets() if config.encoder.points else None
    batch, seconds = _timed_batch(SyntheticFaces(model, size=config.encoder.crop_size, mesh=mesh), batch_size)
    batch = replace(batch, gt=None).to(device)
    return Stage(
        make_coarse_objective(config, encoder.to(device), model.to(device)),
        batch,
        config.encoder.backbone,
        chosen_precision(config.loop),
        config.optimizer.learning_rate,
        seconds,
    )


def detail_stage(path: Path, *, batch_size: int, device: torch.device) -> Stage:
    if path == PACKAGED_DETAIL:
        config = load_recipe(path).stage("detail").settings
        assert isinstance(config, DetailConfig)
    else:
        config = load_config(DetailConfig, path)
    model = load_model(config.model)
    network, settings = make_detail_network(config.network, model), config.network
    faces = DetailedFaces(model, size=settings.image_size, map_size=settings.map_size)
    batch, seconds = _timed_batch(faces, batch_size)
    synthetic = round(batch_size * config.data.synthetic_share)
    photos = replace(batch.first(batch_size - synthetic), gt=None, maps=None) if synthetic < batch_size else None
    known = batch.first(synthetic) if synthetic else None
    encoder = load_encoder(model).to(device)
    objective = make_detail_objective(config, network.to(device), encoder, model.to(device))
    if photos is not None and keeps_coarse(config):
        face = objective.reconstruct.of_photos(photos.to(device))
        kept = to_crop_space(face, photos.camera, sides_per_m=mean_face_frame(model).sides_per_m)
        photos = replace(photos, coarse=kept)
    batch = join_batches([part for part in (photos, known) if part is not None]).to(device)
    name = f"U-Net of width {settings.width}, {settings.layout} layout"
    return Stage(objective, batch, name, chosen_precision(config.loop), config.optimizer.learning_rate, seconds)


def _timed_batch(faces: SyntheticFaces | DetailedFaces, size: int) -> tuple[FaceBatch, float]:
    start = time.perf_counter()
    return faces.batch(range(size)), time.perf_counter() - start


PROCESSOR_TIME = (
    "import runpy, sys, time; time.perf_counter = time.process_time; sys.argv = sys.argv[1:]; "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)
"""Program that runs a script with its clock stopped while other jobs use the processor."""
TURNS = 3


def step_ms(checkout: Path, stage: str, *, batch_size: int) -> float:
    """Processor time of a step in a checkout, milliseconds; one thread, median over the steps."""
    script = checkout / "benchmarks" / "training.py"
    if stage == "coarse" and '"coarse"' not in script.read_text(encoding="utf-8"):
        stage = "base"  # its name in mien 0.1
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "speed.json"
        options = ["--stage", stage, "--batch-size", batch_size, "--threads", 1, "--quick", "--json", found]
        command = [checkout / ".venv" / "bin" / "python", "-c", PROCESSOR_TIME, script, *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([str(word) for word in command], cwd=checkout, env=environment, check=True, capture_output=True)
        return 1e3 * batch_size / json.loads(found.read_text(encoding="utf-8"))["images_per_second"]


def compare(old: Path, stage: str, *, batch_size: int) -> None:
    """Print the processor times of a step in another checkout and in this one, measured by turns."""
    checkouts = (old.resolve(), Path(__file__).resolve().parent.parent)
    times = [[step_ms(checkout, stage, batch_size=batch_size) for checkout in checkouts] for _ in range(TURNS)]
    before, after = (min(turn[k] for turn in times) for k in range(2))
    print(f"{Environment.current()}\n")
    cells = [stage, f"{before:.0f}", f"{after:.0f}", f"{before / after:.2f}"]
    print(markdown_table(["stage", "old, ms a batch", "new, ms a batch", "old / new"], [cells]))


STAGE_MAKERS = {"coarse": (coarse_stage, CONFIGS / "paper_base.toml"), "detail": (detail_stage, PACKAGED_DETAIL)}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--stage", choices=list(STAGE_MAKERS), default="coarse")
    parser.add_argument(
        "--config",
        type=Path,
        help="default: configs/paper_base.toml, or the first detail stage of configs/packaged_detail.toml",
    )
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="five steps")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--old", type=Path, help="compare with this checkout, which has a built .venv")
    options = parser.parse_args(arguments)
    if options.old:
        compare(options.old, options.stage, batch_size=options.batch_size)
        return 0
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    keep_freed_memory()
    make, default = STAGE_MAKERS[options.stage]
    path = options.config or default
    stage = make(path, batch_size=options.batch_size, device=torch.device(options.device))
    objective, batch = stage.objective, stage.batch
    objective.network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    objective.train_mode()
    bf16 = stage.precision == "bf16-mixed"
    engine = initial_state(objective.network, OptimizerSettings(learning_rate=stage.rate), half=bf16).optimizer
    timed_step(objective, batch, engine, bf16=bf16)  # allocations, and the choice of kernels
    count = 5 if options.quick else options.steps
    steps = [timed_step(objective, batch, engine, bf16=bf16) for _ in range(count)]
    medians = {name: 1e3 * statistics.median(s[k] for s in steps) for k, name in enumerate(STAGES)}
    whole = statistics.median(sum(s) for s in steps)
    speed = TrainingSpeed(
        stage=options.stage,
        backbone=stage.name,
        precision=stage.precision,
        batch_size=options.batch_size,
        threads=options.threads,
        images_per_second=options.batch_size / whole,
        render_and_loss_share=sum(medians[name] for name in RENDERING) / sum(medians.values()),
        stages=medians,
        data_ms=1e3 * stage.data_seconds,
        environment=asdict(Environment.current()),
    )
    print(f"{Environment.current()}\n")
    print(markdown_table(["stage", "ms a batch"], [[name, f"{ms:.0f}"] for name, ms in medians.items()]))
    print(f"\n{speed.data_ms / options.batch_size:.1f} ms to synthesize a face")
    print(
        f"{speed.backbone}, {speed.precision}, batch {speed.batch_size}: {speed.images_per_second:.2f} images/s, "
        f"rendering and losses {100 * speed.render_and_loss_share:.0f} % of the step"
    )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(asdict(speed)) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
