"""Detection and report of steps that are not finite, over all processes of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from lightning_fabric import Fabric

from mien.errors import TrainingDiverged
from mien.io.files import write_text
from mien.training.data.batch import FaceBatch
from mien.training.objective import LossTerm

DIVERGED_FILE = "diverged.json"
NAMES_SHOWN = 8


def all_ranks_ok(fabric: Fabric, *, ok: bool) -> bool:
    """Whether `ok` holds in all processes: one that stopped alone would leave the others waiting for its gradient."""
    flag = torch.tensor(float(ok), device=fabric.device)
    if fabric.world_size > 1:
        torch.distributed.all_reduce(flag)
    return float(flag) == fabric.world_size


def divergence(
    fabric: Fabric, run: Path, step: int, terms: Sequence[LossTerm] | None, batch: FaceBatch, *, missing: str
) -> TrainingDiverged:
    """The error to raise in every process; the first process also writes RUN/diverged.json.

    Args:
        fabric: The processes.
        run: Folder of the run.
        step: The step that is not finite.
        terms: Losses of this process; None if they could not be computed.
        batch: Faces of this process.
        missing: What is not finite if there are no terms.
    """
    bad = _gathered(fabric, [term.name for term in terms or () if not torch.isfinite(term.value)])
    lacking = _gathered(fabric, [] if terms is not None else [missing])
    where = [*(f"the loss {name!r}" for name in bad), *lacking, "the gradient"][0]
    finite = torch.isfinite(batch.images.flatten(1)).all(1) & torch.isfinite(batch.gt_px.flatten(1)).all(1)
    damaged = _gathered(fabric, [name for name, fine in zip(batch.names, finite.tolist(), strict=True) if not fine])
    names = damaged or _gathered(fabric, list(batch.names))
    if fabric.is_global_zero:
        with suppress(OSError):  # the error below has the same content
            write_text(run / DIVERGED_FILE, json.dumps({"step": step, "terms": bad, "faces": names}))
    shown = ", ".join(names[:NAMES_SHOWN]) + (f" and {len(names) - NAMES_SHOWN} more" if names[NAMES_SHOWN:] else "")
    advice = "Continue with --resume and a lower rate (--set optimizer.learning_rate=…)."
    if damaged:
        advice = "The data of these faces is not finite: prepare the store without them, and start another run."
    return TrainingDiverged(
        f"step {step}: {where} is not finite; faces: {shown}. The state before this step is kept in {run}; see "
        f"{run / DIVERGED_FILE}. {advice}"
    )


def _gathered(fabric: Fabric, own: list[str]) -> list[str]:
    """The texts of all processes, each text once."""
    texts: list[list[str]] = [own]
    if fabric.world_size > 1:
        texts *= fabric.world_size
        torch.distributed.all_gather_object(texts, own)
    return list(dict.fromkeys(text for part in texts for text in part))
