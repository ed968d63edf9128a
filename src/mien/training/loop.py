"""The training loop of every branch, on Lightning Fabric: one process or many, CPU or GPU.

Batches, learning rate and random numbers are functions of the step. So a resumed run goes on exactly, and processes
that share a batch compute what one process would, up to batch statistics and what each draws by chance (dropout).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.optim import AdamW
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mien.errors import ConfigError, FitDiverged, TrainingDiverged
from mien.io.files import write_text
from mien.training.checkpoint import TrainState, checkpoints, load_checkpoint, save_checkpoint
from mien.training.config import LoopSettings, OptimizerSettings
from mien.training.data.batch import FaceBatch
from mien.training.data.source import FaceSource, Shard, stream
from mien.training.monitor import Monitor
from mien.training.muon import Muon
from mien.training.objective import LossTerm, Objective, P
from mien.training.run_folder import RunInputs, begun_precision, open_run
from mien.typing import Float, Tensor

DIVERGED_FILE = "diverged.json"
BETAS = (0.9, 0.999)
NAMES_SHOWN = 8
PROBE_SIZE, PROBES = 768, 5
Tensors: TypeAlias = tuple[Tensor, ...] | list[Tensor]


@dataclass(frozen=True)
class RunSettings:
    """What the loop needs to know of a run besides its objective and its data."""

    folder: Path
    """Collects checkpoints, tables and sheets."""
    config_text: str
    """The resolved configuration."""
    inputs: RunInputs
    model_hash: str
    optimizer: OptimizerSettings
    loop: LoopSettings
    resume: bool = False


def train(objective: Objective[P], source: FaceSource, settings: RunSettings) -> nn.Module | None:
    """Train until the last step, and return the network to keep: the average where one is made.

    Of several processes the first returns it, the others None.
    Raises TrainingDiverged on a number that is not finite (after saving the state before that step), what `claim` does,
    ModelMismatch for a checkpoint of another face model, and OutputError where the folder cannot be written.
    """
    loop = settings.loop
    fabric = _launch(loop)
    found = checkpoints(settings.folder) if settings.resume else []
    half = _claimed(fabric, settings, reached=found[-1].name if found else "the start") == "bf16-mixed"
    part = Shard(fabric.global_rank, fabric.world_size)
    steps = steps_of(loop, source)
    trained = _prepare(objective.network, settings, half=half)
    first = load_checkpoint(found[-1], trained, model_hash=settings.model_hash) if found else 0
    network, engine = fabric.setup(trained.network, trained.optimizer)
    monitor = Monitor(settings.folder, first_step=first, steps=steps, active=fabric.is_global_zero)
    batches = stream(source, range(first, steps), part=part, workers=loop.workers)
    try:
        for step in range(first, steps):
            start = time.perf_counter()
            batch = next(batches).to(fabric.device)
            monitor.waited(time.perf_counter() - start, len(batch.images) * part.processes)
            # Dropout draws anew at every step, and the same after a resume.
            torch.manual_seed(loop.seed + step * part.processes + part.rank)
            rate = _set_rate(trained, learning_rate(step, steps, settings.optimizer))
            statistics = {name: buffer.clone() for name, buffer in _statistics(trained.network)}
            prepared, terms = _prepared(objective, batch), None
            ready = _all_ranks_ok(fabric, sound=prepared is not None)
            if ready and prepared is not None:
                said = _answer(network, prepared.inputs, loop, half=half)
                terms = _terms(objective, said, prepared, progress=step / steps)
            # The gradient of an L1 loss of a NaN is 0: both have to be looked at.
            norm = math.nan
            loss = None if terms is None else total(terms)
            if _all_ranks_ok(fabric, sound=loss is not None and bool(torch.isfinite(loss))) and loss is not None:
                fabric.backward(loss)
                norm = _clip(trained.network, settings.optimizer.clip_norm)
            if terms is None or not math.isfinite(norm):
                for name, buffer in _statistics(trained.network):
                    buffer.copy_(statistics[name])
                _save(fabric, trained, settings, step)
                answer = "the network's answer" if ready else "what the network would be shown"
                raise _diverged(fabric, settings.folder, step, terms, batch, answer=answer)
            engine.step()
            engine.zero_grad()
            if trained.average is not None:
                trained.average.update_parameters(trained.network)
            done = step + 1
            if done % loop.log_every == 0 or done == steps:
                monitor.log(done, terms, rate=rate, gradient_norm=norm)
            if done % loop.checkpoint_every == 0 or done == steps:
                _save(fabric, trained, settings, done)
            if fabric.is_global_zero:
                _look(objective, trained, settings, monitor, done, last=done == steps)
    finally:
        monitor.close()
    return _final_model(trained) if fabric.is_global_zero else None


def total(terms: Sequence[LossTerm]) -> Float[Tensor, ""]:
    """The weighted sum of the terms, eq. 7 with its priors; ConfigError where every weight is 0."""
    if not terms:
        raise ConfigError("every loss has weight 0; set at least one of [loss].")
    return torch.stack([term.weight * term.value for term in terms]).sum()


def steps_of(loop: LoopSettings, source: FaceSource) -> int:
    """How many steps a run takes."""
    return math.ceil(loop.epochs * source.steps_an_epoch()) if loop.epochs else loop.steps


def learning_rate(step: int, steps: int, settings: OptimizerSettings) -> float:
    """Linear warm-up, then a cosine down to `final_rate` of the rate."""
    warm = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    share = step / max(steps - 1, 1)
    cosine = settings.final_rate + (1 - settings.final_rate) * 0.5 * (1 + math.cos(math.pi * share))
    return settings.learning_rate * warm * cosine


def _launch(loop: LoopSettings) -> Fabric:
    """Join the processes that torchrun started, or be the only one."""
    if loop.threads:
        torch.set_num_threads(loop.threads)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    everywhere = int(os.environ.get("WORLD_SIZE", "1"))
    fabric = Fabric(
        accelerator=loop.device,
        devices=here,
        num_nodes=everywhere // here,
        strategy="ddp" if everywhere > 1 else "auto",
    )
    fabric.launch()
    return fabric


def _claimed(fabric: Fabric, settings: RunSettings, *, reached: str) -> str:
    """Take the run's folder, and return the precision: that of its beginning, lest a run change on the way."""
    precision = _agreed_precision(fabric, settings)
    if fabric.is_global_zero:
        inputs = replace(settings.inputs, precision=precision)
        open_run(settings.folder, settings.config_text, inputs, resume=settings.resume, reached=reached)
    fabric.barrier()
    return precision


def _agreed_precision(fabric: Fabric, settings: RunSettings) -> str:
    """As the run was begun with, else as the first process finds, lest two that measure disagree."""
    begun = begun_precision(settings.folder) if settings.resume else None
    precision = fabric.broadcast(begun or chosen_precision(settings.loop))
    if settings.loop.precision == "auto":
        fabric.print(f"loop.precision: auto, which is {precision} {'here' if begun is None else 'in this run'}")
    return precision


def chosen_precision(loop: LoopSettings) -> Literal["32-true", "bf16-mixed"]:
    """What `loop.precision` comes to on this machine; on a CPU "auto" times a product of matrices, some 50 ms.

    Where a CPU has bf16 without a matrix unit (AMX), or emulates it, float32 is faster, on a Xeon twice.
    """
    if loop.precision != "auto":
        return loop.precision
    if loop.device == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    return "bf16-mixed" if _product_seconds(torch.bfloat16) < _product_seconds(torch.float32) else "32-true"


def _product_seconds(dtype: torch.dtype) -> float:
    """The least time of several products of two square matrices."""
    matrix, least = torch.ones(PROBE_SIZE, PROBE_SIZE, dtype=dtype), math.inf
    for _ in range(PROBES):
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        least = min(least, time.perf_counter() - start)
    return least


def _prepare(network: nn.Module, settings: RunSettings, *, half: bool) -> TrainState:
    optimizer = settings.optimizer
    if settings.loop.channels_last:
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    network.train()
    average = None
    if optimizer.ema_decay:
        average = AveragedModel(network, multi_avg_fn=_moving_average(optimizer.ema_decay), use_buffers=True)
        average.eval().requires_grad_(False)
    rate, decay = optimizer.learning_rate, optimizer.weight_decay
    if optimizer.method == "muon":
        dtype = torch.bfloat16 if half else torch.float32
        muon = Muon(network, lr=rate, betas=BETAS, weight_decay=decay, iterate_in=dtype)
        return TrainState(network, average, muon)
    learning = [p for p in network.parameters() if p.requires_grad]
    return TrainState(network, average, AdamW(learning, lr=rate, betas=BETAS, weight_decay=decay))


def _moving_average(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """The exponential average of weights and statistics; torch's own would also average indices, and cut them off."""
    average = get_ema_multi_avg_fn(decay)

    def update(kept: Tensors, current: Tensors, count: Tensor | int) -> None:
        if kept[0].is_floating_point():
            average(kept, current, count)
        else:
            for old, new in zip(kept, current, strict=True):
                old.copy_(new)

    return update


def _statistics(network: nn.Module) -> list[tuple[str, Tensor]]:
    """The buffers that training changes: those that a file of the network holds."""
    kept = network.state_dict().keys()
    return [(name, buffer) for name, buffer in network.named_buffers() if name in kept]


def _set_rate(trained: TrainState, rate: float) -> float:
    for group in trained.optimizer.param_groups:
        group["lr"] = rate
    return rate


def _answer(network: nn.Module, inputs: tuple[Tensor, ...], loop: LoopSettings, *, half: bool) -> dict[str, Tensor]:
    """What the network says, in float32 whatever it works in.

    Fabric's own mixed precision would cut inputs too: points in bfloat16 lie some tenths of a pixel off.
    """
    if loop.channels_last:
        inputs = tuple(x.to(memory_format=torch.channels_last) if x.ndim == 4 else x for x in inputs)
    with torch.autocast(loop.device, torch.bfloat16, enabled=half):
        said = network(*inputs)
    return {name: tensor.float() for name, tensor in said.items()}


def _clip(network: nn.Module, limit: float) -> float:
    """Scale the gradient down to the limit (if there is one); its norm before."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if limit:
        torch.nn.utils.clip_grads_with_norm_(network.parameters(), limit, norm)
    return float(norm)


def _save(fabric: Fabric, trained: TrainState, settings: RunSettings, step: int) -> None:
    if fabric.is_global_zero:
        keep = settings.loop.keep_checkpoints
        save_checkpoint(settings.folder, trained, step=step, model_hash=settings.model_hash, keep=keep)


def _prepared(objective: Objective[P], batch: FaceBatch) -> P | None:
    """What the network is shown; None where a fit before it is not finite."""
    try:
        return objective.prepare(batch)
    except FitDiverged:
        return None


def _terms(objective: Objective[P], said: dict[str, Tensor], prepared: P, *, progress: float) -> list[LossTerm] | None:
    """The losses of an answer; None for one that cannot even be drawn."""
    try:
        return objective.losses(said, prepared, progress=progress)
    except FitDiverged:
        return None


def _all_ranks_ok(fabric: Fabric, *, sound: bool) -> bool:
    """Whether all processes are sound: one that stopped alone would leave the others waiting for its gradient."""
    flag = torch.tensor(float(sound), device=fabric.device)
    if fabric.world_size > 1:
        torch.distributed.all_reduce(flag)
    return float(flag) == fabric.world_size


def _gathered(fabric: Fabric, own: list[str]) -> list[str]:
    """What the processes have to say, each thing once."""
    said: list[list[str]] = [own]
    if fabric.world_size > 1:
        said *= fabric.world_size
        torch.distributed.all_gather_object(said, own)
    return list(dict.fromkeys(text for part in said for text in part))


def _diverged(
    fabric: Fabric, run: Path, step: int, terms: Sequence[LossTerm] | None, batch: FaceBatch, *, answer: str
) -> TrainingDiverged:
    bad = _gathered(fabric, [term.name for term in terms or () if not torch.isfinite(term.value)])
    missing = _gathered(fabric, [] if terms is not None else [answer])
    where = [*(f"the loss {name!r}" for name in bad), *missing, "the gradient"][0]
    finite = torch.isfinite(batch.images.flatten(1)).all(1) & torch.isfinite(batch.gt_px.flatten(1)).all(1)
    spoilt = _gathered(fabric, [name for name, fine in zip(batch.names, finite.tolist(), strict=True) if not fine])
    names = spoilt or _gathered(fabric, list(batch.names))
    if fabric.is_global_zero:
        with suppress(OSError):  # the error that is raised says the same
            write_text(run / DIVERGED_FILE, json.dumps({"step": step, "terms": bad, "faces": names}))
    shown = ", ".join(names[:NAMES_SHOWN]) + (f" and {len(names) - NAMES_SHOWN} more" if names[NAMES_SHOWN:] else "")
    advice = "Go on with --resume and a lower rate (--set optimizer.learning_rate=…)."
    if spoilt:
        advice = "What the store holds of these faces is not finite: prepare it without them, and begin another run."
    return TrainingDiverged(
        f"step {step}: {where} is not finite; faces: {shown}. The state before this step is kept in {run}; see "
        f"{run / DIVERGED_FILE}. {advice}"
    )


def _look(
    objective: Objective[P], trained: TrainState, settings: RunSettings, monitor: Monitor, done: int, *, last: bool
) -> None:
    """Validate and draw with the network that would be kept now."""
    validate = last or done % settings.loop.validate_every == 0
    draw = last or done % settings.loop.sheet_every == 0
    if not (validate or draw):
        return
    kept = _final_model(trained)
    if validate:
        monitor.validated(done, objective.evaluate(kept))
    if draw:
        monitor.sheet(done, objective.visualize(kept))
    trained.network.train()


def _final_model(trained: TrainState) -> nn.Module:
    """The average of the weights, or the last ones."""
    return (trained.network if trained.average is None else trained.average.module).eval()
