"""The training loop for both networks, on Lightning Fabric: one process or several, CPU or GPU.

Batches, learning rate and random numbers are functions of the step. Therefore a resumed run continues exactly, and
processes that share a batch compute the same as one process would, up to batch statistics and dropout.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic

import torch
from lightning_fabric import Fabric
from torch import nn

from mien.errors import ConfigError, FitDiverged
from mien.training.checkpoint import TrainState, load_checkpoint, newest_checkpoint, save_checkpoint
from mien.training.config import LoopSettings, OptimizerSettings
from mien.training.data.batch import FaceBatch
from mien.training.data.source import FaceSource, Shard, stream
from mien.training.divergence import all_ranks_ok, divergence
from mien.training.monitor import Monitor
from mien.training.objective import LossTerm, Objective, P
from mien.training.optimization import (
    clip_gradient,
    final_model,
    initial_state,
    learning_rate,
    set_rate,
    trained_buffers,
)
from mien.training.precision import chosen_precision
from mien.training.run_record import RunInputs, open_run, recorded_precision
from mien.training.stop_signal import EXIT_CODE, StopSignal
from mien.typing import Float, Tensor


@dataclass(frozen=True)
class RunSettings:
    """Everything about a run besides its objective and its data."""

    folder: Path
    """Folder for checkpoints, tables and contact sheets."""
    config_text: str
    """The resolved configuration."""
    inputs: RunInputs
    """Hashes of the run's inputs."""
    model_hash: str
    """Fingerprint of the face model."""
    optimizer: OptimizerSettings
    loop: LoopSettings
    resume: bool = False
    """Whether to continue from the folder's last checkpoint."""
    begin: Callable[[Shard], None] | None = None
    """Is called in each process when the folder is open, before the first batch is made."""


def train(
    objective: Objective[P], source: FaceSource, settings: RunSettings, *, validation: FaceBatch
) -> nn.Module | None:
    """Train until the last step.

    Args:
        objective: The network and its losses, on the run's device.
        source: Training batches.
        settings: Folder, optimiser and loop.
        validation: Faces for metrics and contact sheets, on the run's device; no step may train on them.

    Returns:
        The trained network in evaluation mode: the average of the weights if there is one. With several processes the
        first one returns it, the others return None.

    Raises:
        TrainingDiverged: A number is not finite; the state before that step is saved.
        ConfigError: The folder holds another run, or a batch cannot be divided over the processes.
        FormatError: All checkpoints of a run that is resumed are damaged or gone.
        ModelMismatch: The checkpoint belongs to another face model.
        OutputError: The folder cannot be written.
        SystemExit: SIGTERM arrived; the state is saved.

    Warns:
        CheckpointDoubtful: See `newest_checkpoint`.
    """
    with _processes(settings.loop) as fabric:
        return _train(fabric, objective, source, settings, validation)


def _train(
    fabric: Fabric, objective: Objective[P], source: FaceSource, settings: RunSettings, validation: FaceBatch
) -> nn.Module | None:
    found = _resume_point(fabric, settings)
    half = _open(fabric, settings, reached="the start" if found is None else found.name) == "bf16-mixed"
    shard = Shard(fabric.global_rank, fabric.world_size)
    if settings.begin is not None:
        settings.begin(shard)
    steps = step_count(settings.loop, source)
    state = _initial_state(objective, settings, half=half)
    first = 0 if found is None else load_checkpoint(found, state, model_hash=settings.model_hash)
    network, engine = fabric.setup(state.network, state.optimizer)
    monitor = Monitor(settings.folder, first_step=first, steps=steps, active=fabric.is_global_zero)
    batches = stream(source, range(first, steps), shard=shard, workers=settings.loop.workers)
    with StopSignal.noted() as stop, closing(monitor):
        run = _Run(fabric, objective, settings, state, network, engine, monitor, validation, steps, half, stop)
        run.make_up(first)
        for step in range(first, steps):
            run.stop_if_asked(step)
            start = time.perf_counter()
            batch = next(batches).to(fabric.device)
            monitor.add_wait(time.perf_counter() - start, len(batch.images) * shard.processes)
            run.step(step, batch)
        run.stop_if_asked(steps)
    return final_model(state) if fabric.is_global_zero else None


@dataclass(frozen=True)
class _Gradient:
    """Outcome of a backward pass; it diverged if terms are missing or the norm is not finite."""

    terms: list[LossTerm] | None
    norm: float
    missing: str
    """What is not finite if terms are missing."""

    @property
    def diverged(self) -> bool:
        return self.terms is None or not math.isfinite(self.norm)


@dataclass(frozen=True)
class _Run(Generic[P]):
    """One process's view of a run."""

    fabric: Fabric
    objective: Objective[P]
    settings: RunSettings
    state: TrainState
    network: nn.Module
    """The trained network, wrapped by Fabric."""
    engine: Any
    """The optimiser, wrapped by Fabric."""
    monitor: Monitor
    validation: FaceBatch
    steps: int
    half: bool
    stop: StopSignal

    def stop_if_asked(self, done: int) -> None:
        """After SIGTERM in any process, save the state after `done` steps and end all of them."""
        if all_ranks_ok(self.fabric, ok=not self.stop.received):
            return
        self._save(done)
        self.monitor.note(f"stopped by SIGTERM after step {done}; the state is saved, continue with --resume")
        raise SystemExit(EXIT_CODE)

    def step(self, step: int, batch: FaceBatch) -> None:
        """Take one optimiser step; raises TrainingDiverged after saving the state before it."""
        fabric, state = self.fabric, self.state
        # Dropout draws new numbers at every step, and the same ones after a resume.
        torch.manual_seed(self.settings.loop.seed + step * fabric.world_size + fabric.global_rank)
        rate = set_rate(state, learning_rate(step, self.steps, self.settings.optimizer))
        before = {name: buffer.clone() for name, buffer in trained_buffers(state.network)}
        gradient = self._backward(batch, progress=step / self.steps)
        if gradient.diverged:
            for name, buffer in trained_buffers(state.network):
                buffer.copy_(before[name])
            self._save(step)
            raise divergence(fabric, self.settings.folder, step, gradient.terms, batch, missing=gradient.missing)
        self.engine.step()
        self.engine.zero_grad()
        if state.average is not None:
            state.average.update_parameters(state.network)
        self._record(step + 1, gradient, rate)

    def _backward(self, batch: FaceBatch, *, progress: float) -> _Gradient:
        """Compute losses and gradient; all processes take the same branches, since they wait for each other."""
        prepared, terms = self._prepare(batch), None
        ready = all_ranks_ok(self.fabric, ok=prepared is not None)
        if ready and prepared is not None:
            terms = self._terms(self._predict(prepared), prepared, progress)
        # The gradient of an L1 loss of a NaN is 0: loss and gradient both have to be checked.
        loss, norm = None if terms is None else weighted_sum(terms), math.nan
        if all_ranks_ok(self.fabric, ok=loss is not None and bool(torch.isfinite(loss))) and loss is not None:
            self.fabric.backward(loss)
            norm = clip_gradient(self.state.network, self.settings.optimizer.clip_norm)
        return _Gradient(terms, norm, "the network's prediction" if ready else "the network's input")

    def _prepare(self, batch: FaceBatch) -> P | None:
        try:
            return self.objective.prepare(batch)
        except FitDiverged:
            return None

    def _predict(self, prepared: P) -> Any:
        """Predict under autocast.

        Fabric's own mixed precision would also round the inputs: points in bfloat16 are tenths of a pixel off.
        """
        loop, inputs = self.settings.loop, prepared.inputs
        if loop.channels_last:
            inputs = tuple(x.to(memory_format=torch.channels_last) if x.ndim == 4 else x for x in inputs)
        with torch.autocast(loop.device, torch.bfloat16, enabled=self.half):
            return self.objective.predict(self.network, inputs)

    def _terms(self, prediction: Any, prepared: P, progress: float) -> list[LossTerm] | None:
        try:
            return self.objective.losses(prediction, prepared, progress=progress)
        except FitDiverged:
            return None

    def _record(self, done: int, gradient: _Gradient, rate: float) -> None:
        """Log, save, validate and draw after `done` steps, each at its own interval."""
        loop = self.settings.loop
        if self._due(done, loop.log_every):
            self.monitor.log(done, gradient.terms or [], rate=rate, gradient_norm=gradient.norm)
        if self._due(done, loop.checkpoint_every):
            self._save(done)
        self._inspect(done, validate=self._due(done, loop.validate_every), draw=self._due(done, loop.sheet_every))

    def make_up(self, first: int) -> None:
        """Validate and draw after the checkpoint that the run continues from, if it was killed before it did."""
        loop, monitor = self.settings.loop, self.monitor
        if first:
            validate = self._due(first, loop.validate_every) and not monitor.has_validation(first)
            draw = self._due(first, loop.sheet_every) and not monitor.has_sheet(first)
            self._inspect(first, validate=validate, draw=draw)

    def _due(self, done: int, every: int) -> bool:
        return done == self.steps or done % every == 0

    def _inspect(self, done: int, *, validate: bool, draw: bool) -> None:
        """Validate and draw in the first process; SIGTERM cuts it off, and the resumed run makes it up."""
        if not self.fabric.is_global_zero or not (validate or draw):
            return
        network, faces = final_model(self.state), self.validation
        if validate:
            metrics = self.stop.interruptible(lambda: self.objective.evaluate(network, faces))
            if metrics is not None:
                self.monitor.validated(done, metrics)
        if draw:
            sheet = self.stop.interruptible(lambda: self.objective.visualize(network, faces))
            if sheet is not None:
                self.monitor.sheet(done, sheet)
        self.objective.train_mode()

    def _save(self, step: int) -> None:
        if self.fabric.is_global_zero:
            keep = self.settings.loop.keep_checkpoints
            save_checkpoint(self.settings.folder, self.state, step=step, model_hash=self.settings.model_hash, keep=keep)


def weighted_sum(terms: list[LossTerm]) -> Float[Tensor, ""]:
    """The weighted sum of the losses (eq. 7 with its priors, or eq. 12); differentiable.

    Raises:
        ConfigError: There are no losses, since every weight is 0.
    """
    if not terms:
        raise ConfigError("every loss has weight 0; give at least one weight in [loss] another value.")
    return torch.stack([term.weight * term.value for term in terms]).sum()


def step_count(loop: LoopSettings, source: FaceSource) -> int:
    """Number of steps of a run.

    Raises:
        ConfigError: `loop.epochs` is set, and the run has no photos.
    """
    return math.ceil(loop.epochs * source.steps_per_epoch()) if loop.epochs else loop.steps


@contextmanager
def _processes(loop: LoopSettings) -> Iterator[Fabric]:
    """The processes of a run, which leave their group together.

    Gloo's threads would otherwise still run when the interpreter of the first process to finish goes, which aborts it.
    """
    fabric = _launch(loop)
    try:
        yield fabric
        fabric.barrier()
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _launch(loop: LoopSettings) -> Fabric:
    """Join the processes that torchrun started; without torchrun this process is the only one."""
    if loop.threads:
        torch.set_num_threads(loop.threads)
    on_node = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    world = int(os.environ.get("WORLD_SIZE", "1"))
    fabric = Fabric(
        accelerator=loop.device,
        devices=on_node,
        num_nodes=world // on_node,
        strategy="ddp" if world > 1 else "auto",
    )
    fabric.launch()
    return fabric


def _resume_point(fabric: Fabric, settings: RunSettings) -> Path | None:
    """The checkpoint to continue from; the first process chooses it, so that damage is reported once."""
    chosen = newest_checkpoint(settings.folder) if settings.resume and fabric.is_global_zero else None
    return fabric.broadcast(chosen)


def _open(fabric: Fabric, settings: RunSettings, *, reached: str) -> str:
    """Open the run's folder, and return the precision, which stays the same for the whole run."""
    precision = _agreed_precision(fabric, settings)
    if fabric.is_global_zero:
        inputs = replace(settings.inputs, precision=precision)
        open_run(settings.folder, settings.config_text, inputs, resume=settings.resume, reached=reached)
    fabric.barrier()
    return precision


def _agreed_precision(fabric: Fabric, settings: RunSettings) -> str:
    """The precision at the start of the run; for a new run that of the first process, so that all agree."""
    recorded = recorded_precision(settings.folder) if settings.resume else None
    precision = fabric.broadcast(recorded or chosen_precision(settings.loop))
    if settings.loop.precision == "auto":
        fabric.print(f"loop.precision: auto, which is {precision} {'here' if recorded is None else 'in this run'}")
    return precision


def _initial_state(objective: Objective[P], settings: RunSettings, *, half: bool) -> TrainState:
    if settings.loop.channels_last:
        objective.network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    objective.train_mode()
    return initial_state(objective.network, settings.optimizer, half=half)
