"""Running a recipe: stage after stage, resumable at any point, with metrics before and after each stage."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from mien.errors import ConfigError
from mien.io.files import write_text, write_whole, writing
from mien.io.reading import read_json
from mien.morphable import load_model
from mien.networks import DEFAULT_ENCODER, FaceEncoder, load_detail, load_encoder, save_encoder
from mien.training.centring import centred, identity_differences
from mien.training.config import CoarseConfig, DetailConfig
from mien.training.data.fits import fit_store, load_fits
from mien.training.data.photos import PhotoFaces
from mien.training.data.store import FaceStore
from mien.training.initial_networks import make_detail_network, make_encoder
from mien.training.objective import Metric
from mien.training.recipe import CentreStage, FitsStage, Recipe, SkinsStage, Stage, SyntheticStage
from mien.training.run import (
    DETAIL_FILE,
    ENCODER_FILE,
    make_coarse_objective,
    make_detail_objective,
    train_coarse,
    train_detail,
)
from mien.training.shape_distance import shape_gram
from mien.training.sources import held_out_detail_faces, held_out_faces
from mien.training.synthetic.skins import collect_skins
from mien.training.synthetic.store import SyntheticStorePlan, write_synthetic_store
from mien.typing import Tensor

STAGE_FILE, FIGURES_FILE, SKINS_FILE, STORES = "stage.json", "figures.csv", "skins.safetensors", "stores"
RESULTS = {"coarse": ENCODER_FILE, "centre": ENCODER_FILE, "detail": DETAIL_FILE}
HEADER = ["stage", "metric", "unit", "before", "after"]


@dataclass(frozen=True)
class StageMetric:
    """A metric on held-out faces, of the network that a stage starts from and of its result.

    Held-out faces depend on the stage's seed, crop size and crop jitter, so compare within a stage, not across stages.
    """

    name: str
    """Name of the metric."""
    unit: str
    """Empty for a number without unit."""
    before: float | None
    """Value of the network that the stage starts from; None where there is nothing to compare with."""
    after: float
    """Value of the stage's result."""

    def text(self) -> str:
        """The metric as text, e.g. "points 3.1 → 2 % of the eyes' distance"."""
        change = f"{self.after:.4g}" if self.before is None else f"{self.before:.4g} → {self.after:.4g}"
        return f"{self.name} {change} {self.unit}".strip()


def run_recipe(
    recipe: Recipe,
    out: Path,
    *,
    store: str | None,
    only: str | None = None,
    processes: int = 1,
    report: Callable[[str], None] = lambda line: None,
) -> Path | None:
    """Run the stages that are not finished, and copy the last network to `out`.

    Args:
        recipe: The stages.
        out: Folder with one folder per stage; a stopped recipe continues here.
        store: Store of photos; None for a recipe without photos.
        only: Name of the only stage to run; all stages before it must be finished.
        processes: Number of processes that synthesize faces. Networks are trained by this process.
        report: Called with a line of text about each stage.

    Returns:
        The last network's file; None if stages are left after `only`.

    Raises:
        ConfigError: A finished stage was made with other settings, or stages before `only` are not finished.
        OutputError: `out` cannot be written.
        MienError: Whatever training raises.
    """
    run = _RecipeRun(recipe, out.resolve(), store, processes)
    wanted = recipe.stages if only is None else (recipe.stage(only),)
    for stage in recipe.stages:
        finished = run.finished(stage)
        if finished is None and stage not in wanted:
            if only is not None and recipe.stages.index(stage) < recipe.stages.index(wanted[0]):
                raise ConfigError(f"stage {stage.name!r} is not finished; run it before stage {only!r}.")
            continue
        metrics = run.run(stage) if finished is None else finished
        text = ", ".join(metric.text() for metric in metrics)
        report(f"stage {stage.name}{'' if finished is None else ' (finished before)'}: {text}")
    return run.collect()


@dataclass(frozen=True)
class _FinishedStage:
    """The content of stage.json."""

    stage: dict[str, Any]
    metrics: list[StageMetric]


@dataclass(frozen=True)
class _RecipeRun:
    recipe: Recipe
    out: Path
    store: str | None
    processes: int

    def finished(self, stage: Stage) -> list[StageMetric] | None:
        """The metrics of a finished stage; None if it is not finished."""
        path = self.out / stage.name / STAGE_FILE
        if not path.exists():
            return None
        finished = read_json(path, _FinishedStage, advice="delete it to run the stage again")
        if finished.stage != self._record(stage):
            raise ConfigError(
                f"stage {stage.name!r} in {self.out} was made with other settings, see {path}; use the former recipe, "
                "or choose another folder."
            )
        return finished.metrics

    def run(self, stage: Stage) -> list[StageMetric]:
        """Run or continue a stage, and mark it as finished."""
        settings, folder = stage.settings, self.out / stage.name
        if isinstance(settings, SkinsStage):
            metrics = self._collect_skins(folder)
        elif isinstance(settings, SyntheticStage):
            metrics = self._synthesize(stage, settings)
        elif isinstance(settings, FitsStage):
            metrics = self._fit_photos()
        elif isinstance(settings, CentreStage):
            metrics = self._centre(stage, folder)
        elif isinstance(settings, CoarseConfig):
            metrics = self._train_coarse(stage, settings, folder)
        else:
            metrics = self._train_detail(stage, settings, folder)
        content = {"stage": self._record(stage), "metrics": [asdict(metric) for metric in metrics]}
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / STAGE_FILE, json.dumps(content, indent=1))
        return metrics

    def collect(self) -> Path | None:
        """Write figures.csv and, once all stages are finished, the last network of each kind."""
        finished = {stage.name: self.finished(stage) for stage in self.recipe.stages}
        rows = [
            [name, m.name, m.unit, "" if m.before is None else f"{m.before:.6g}", f"{m.after:.6g}"]
            for name, metrics in finished.items()
            for m in metrics or ()
        ]
        table = io.StringIO()
        csv.writer(table, lineterminator="\n").writerows([HEADER, *rows])
        result = None
        with writing(self.out):
            write_text(self.out / FIGURES_FILE, table.getvalue())
            if all(metrics is not None for metrics in finished.values()):
                for stage in self.recipe.stages:
                    if stage.kind in RESULTS:
                        result = self.out / RESULTS[stage.kind]
                        source = self.out / stage.name / RESULTS[stage.kind]
                        write_whole(result, lambda partial, source=source: shutil.copyfile(source, partial))
        return result

    def _record(self, stage: Stage) -> dict[str, object]:
        return {"model": self.recipe.model, **stage.record()}

    def _collect_skins(self, folder: Path) -> list[StageMetric]:
        if self.store is None:
            raise ConfigError("a stage of kind 'skins' needs photos; give a store with --data.")
        model = load_model(self.recipe.model)
        skins = collect_skins(FaceStore(self.store, split="train"), model)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / SKINS_FILE, lambda partial: skins.save(partial, model))
        return [StageMetric("skins", "", None, float(len(skins.albedo)))]

    def _fit_photos(self) -> list[StageMetric]:
        if self.store is None:
            raise ConfigError("a stage of kind 'fits' needs photos; give the folder of a store with --data.")
        fits = fit_store(Path(self.store), model=self.recipe.model, processes=self.processes)
        return [StageMetric("fits", "", None, float(len(fits)))]

    def _centre(self, stage: Stage, folder: Path) -> list[StageMetric]:
        if self.store is None:
            raise ConfigError("a stage of kind 'centre' needs photos; give the folder of a store with --data.")
        model = load_model(self.recipe.model)
        encoder = load_encoder(model, self.out / stage.start / ENCODER_FILE)
        fits, gram = load_fits(Path(self.store), model), shape_gram(model)[: model.counts[0], : model.counts[0]]

        def differences(network: FaceEncoder, split: Literal["train", "validation"]) -> Tensor:
            faces = FaceStore(str(self.store), split=split)
            crops = PhotoFaces(faces, model, size=network.crop_size, seed=0, augment=False, fits=fits)
            return identity_differences(network, crops)

        def distance_mm(network: FaceEncoder) -> float:
            rows = differences(network, "validation")
            return 10 * float(((rows @ gram) * rows).sum(1).mean().sqrt())

        result = centred(encoder, differences(encoder, "train"))
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            save_encoder(result, folder / ENCODER_FILE, notes={})
        return [StageMetric("distance from the fit", "mm", distance_mm(encoder), distance_mm(result))]

    def _synthesize(self, stage: Stage, settings: SyntheticStage) -> list[StageMetric]:
        plan = SyntheticStorePlan(
            settings.faces,
            size=settings.size,
            seed=settings.seed,
            jitter=settings.jitter,
            model=self.recipe.model,
            skins=self._skins(stage),
        )
        write_synthetic_store(plan, self.out / STORES / settings.store, processes=self.processes)
        return [StageMetric("faces", "", None, float(settings.faces))]

    def _train_coarse(self, stage: Stage, settings: CoarseConfig, run: Path) -> list[StageMetric]:
        data = replace(settings.data, skins=self._skins(stage))
        if data.synthetic:
            data = replace(data, synthetic=str(self.out / STORES / data.synthetic))
        start = str(self.out / stage.start / ENCODER_FILE) if stage.start else settings.encoder.start
        config = replace(settings, data=data, encoder=replace(settings.encoder, start=start))
        train_coarse(config, store=self.store, run=run, resume=True)
        model = load_model(config.model)
        faces = held_out_faces(config, model, store=self.store, split="validation")
        torch.manual_seed(config.loop.seed)
        networks = (make_encoder(config.encoder, model).eval(), load_encoder(model, run / ENCODER_FILE))
        before, after = (make_coarse_objective(config, n, model).evaluate(n, faces) for n in networks)
        return _stage_metrics(before, after)

    def _train_detail(self, stage: Stage, settings: DetailConfig, run: Path) -> list[StageMetric]:
        encoder = self.out / stage.encoder / ENCODER_FILE if stage.encoder else DEFAULT_ENCODER
        start = str(self.out / stage.start / DETAIL_FILE) if stage.start else settings.network.start
        data = replace(settings.data, skins=self._skins(stage))
        config = replace(settings, data=data, network=replace(settings.network, start=start))
        train_detail(config, encoder=encoder, store=self.store, run=run, resume=True)
        model = load_model(config.model)
        faces = held_out_detail_faces(config, model, store=self.store, split="validation")
        frozen = load_encoder(model, encoder)
        torch.manual_seed(config.loop.seed)
        networks = (make_detail_network(config.network, model).eval(), load_detail(model, run / DETAIL_FILE))
        before, after = (make_detail_objective(config, n, frozen, model).evaluate(n, faces) for n in networks)
        return _stage_metrics(before, after)

    def _skins(self, stage: Stage) -> str:
        return str(self.out / stage.skins / SKINS_FILE) if stage.skins else ""


def _stage_metrics(before: Sequence[Metric], after: Sequence[Metric]) -> list[StageMetric]:
    old = {metric.name: metric.value for metric in before}
    return [StageMetric(m.name, m.unit, old.get(m.name), m.value) for m in after]
