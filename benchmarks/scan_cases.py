"""Photos with scans as inputs of the fit, and predictions with some of these inputs or settings changed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from scan_truth import PhotoTruth, ScanFace, fit_points, fit_to_scan

from mien.camera import Pose
from mien.errors import ConfigError, NoFaceFound
from mien.evaluation.scan_alignment import IcpSettings
from mien.evaluation.scans import FaceScan, PredictedFace, ScanErrors, score_face
from mien.fitting import FitSettings, FitTargets, fit
from mien.fitting.landmarks import LandmarkFit
from mien.geometry import Surface
from mien.io.photo import Photo, read_photo
from mien.morphable import FaceCoefficients, MorphableModel, load_model
from mien.perception import FaceDetection, FaceDetector, IdentityNetwork
from mien.pipeline import Reconstructor
from mien.pipeline.inputs import PhotoInputs
from mien.typing import Float, Tensor

OFF = 1000.0
"""Standard deviation of an error that has no influence."""
SCORED_POINTS, SCORED_ICP = 2000, IcpSettings(points=750)
"""A third of the points of a scan, in half of the time; one photo went from 1.220 to 1.203 mm."""
TRUE_POINT_SIGMA, TRUE_DEPTH_SIGMA = 0.005, 0.01
"""Errors of true points and depths, as shares of the face's size: those of the model on the scan."""
LIMIT_PRIOR = 0.1
"""Factor of the prior's precision for the limit of the model. With 0.01, the model follows noise of the scan."""


class Tools:
    """Model and networks, loaded at their first use."""

    def __init__(self) -> None:
        self.model = load_model()
        self.detector = FaceDetector()
        self.recognition = IdentityNetwork.from_assets()

    @cached_property
    def net(self) -> Reconstructor:
        """Mode net without detail maps."""
        return Reconstructor(self.model, mode="net", detail=False)

    @cached_property
    def auto(self) -> Reconstructor:
        """Mode auto without detail maps."""
        return Reconstructor(self.model, mode="auto", detail=False)


class Case:
    """One photo with its scan; what several rows need is computed once."""

    def __init__(self, tools: Tools, scan: FaceScan) -> None:
        if scan.camera is None or scan.photo is None:
            raise ConfigError(f"{scan.name} has no photo with a camera; use a data set in mien's layout.")
        self.tools, self.scan, self.camera = tools, scan, scan.camera
        self.photo: Photo = read_photo(scan.photo)

    @cached_property
    def detections(self) -> Sequence[FaceDetection]:
        """The most prominent face."""
        found = self.tools.detector.detect(self.photo.pixels, max_faces=1)
        if not found:
            raise NoFaceFound(f"{self.scan.name}: no face was found; leave this photo out.")
        return found

    @cached_property
    def inputs(self) -> PhotoInputs:
        """Inputs of the fit."""
        return self._inputs()

    def _inputs(self, focal_px: float | None = None) -> PhotoInputs:
        return PhotoInputs.of(
            self.photo.pixels,
            self.detections,
            focal_px=focal_px,
            exif_focal_px=self.photo.focal_px,
            device=torch.device("cpu"),
        )

    @property
    def targets(self) -> FitTargets:
        """Targets of the fit."""
        return self.inputs.targets

    @cached_property
    def detected_px(self) -> Float[Tensor, "468 3"]:
        """Detected points with their depth, photo pixels."""
        return torch.from_numpy(self.detections[0].landmarks468_px.astype(np.float64))

    @cached_property
    def lifted_mm(self) -> Float[Tensor, "468 3"]:
        """The scan at the detected points; NaN where it has a hole."""
        return self.camera.points_at(self.detected_px[:, :2] - 0.5, self.scan.surface)

    @cached_property
    def scan_face(self) -> ScanFace:
        """The model on the scan."""
        return fit_to_scan(self.tools.model, self.scan, self.lifted_mm)

    @cached_property
    def scan_points_mm(self) -> Float[Tensor, "468 3"]:
        """MediaPipe's points of the model on the scan."""
        model = self.tools.model
        return model.mediapipe_points(self.scan_face.vertices_mm(model)[None])[0]

    @cached_property
    def truth(self) -> PhotoTruth:
        """True positions and depths in the photo."""
        return PhotoTruth.of(self.camera, self.scan_points_mm)

    def true_targets(self, *, points: bool = False, depth: bool = False) -> FitTargets:
        """Targets with true points, true depths or both."""
        crop, targets = self.inputs.faces[0].crop, self.targets
        if points:
            targets = replace(targets, landmarks468_px=crop.to_crop(self.truth.points_px)[None].float())
        if depth:
            targets = replace(targets, landmarks468_depth_px=(self.truth.depths_px / crop.scale)[None].float())
        return targets

    def fitted(
        self,
        settings: FitSettings | None = None,
        targets: FitTargets | None = None,
        model: MorphableModel | None = None,
    ) -> PredictedFace:
        """The fit with some inputs or settings changed."""
        settings, targets, model = settings or FitSettings(), targets or self.targets, model or self.tools.model
        recognition = self.tools.recognition if settings.recognition_weight else None
        result = fit(model, targets, settings=settings, recognition=recognition)
        return self._prediction(model, result.coefficients, targets)

    def known_focal(self) -> PredictedFace:
        """The fit with the true focal length."""
        return self.fitted(targets=self._inputs(self.truth.focal_px).targets)

    def known_pose(self) -> PredictedFace:
        """A fit of points and depths with the rotation that shows the true face at its true points."""
        model, face = self.tools.model, self.scan_face
        settings = FitSettings(landmark_sigma=TRUE_POINT_SIGMA, lid_sigma=OFF)
        unknown = Pose(torch.zeros(1, 3), torch.zeros(1, 3), torch.ones(1))
        start = LandmarkFit(face.identity, face.expression, unknown, self.targets.camera)
        true = replace(self.true_targets(points=True), landmarks468_depth_px=None)
        true_pose = fit_points(model, true, settings=settings, start=start, hold="shape")
        found = fit_points(model, self.targets, settings=FitSettings(), start=true_pose, hold="rotation")
        return self._prediction(model, found, self.targets)

    def known_expression(self) -> PredictedFace:
        """The fit of a model whose mean face has the true expression and that has no other."""
        model = copy.deepcopy(self.tools.model)
        expression = self.scan_face.expression
        model.mean = model.vertices(torch.zeros(1, model.counts[0]), expression)[0]
        model.expression_basis = torch.zeros_like(model.expression_basis)
        return self.fitted(model=model)

    def model_limit(self) -> PredictedFace:
        """The model fitted to the scan itself, with little prior."""
        model = self.tools.model
        face = fit_to_scan(model, self.scan, self.lifted_mm, start=self.scan_face, prior=LIMIT_PRIOR)
        vertices = face.vertices_mm(model)
        surface = Surface(vertices, model.triangles.long())
        return PredictedFace(surface, metric=True, pixels=self.camera.project(vertices)[:, :2])

    def score(self, face: PredictedFace, *, points: int = SCORED_POINTS, icp: IcpSettings = SCORED_ICP) -> ScanErrors:
        """Errors of a prediction, as `mien evaluate scans` measures them but at fewer points."""
        scan = self.scan
        regions = None if scan.region_of_point is None else scan.region_of_point[:points]
        return score_face(replace(scan, points=scan.points[:points], region_of_point=regions, icp=icp), face)

    def _prediction(
        self, model: MorphableModel, face: FaceCoefficients | LandmarkFit, targets: FitTargets
    ) -> PredictedFace:
        with torch.no_grad():
            vertices = model.vertices(face.identity, face.expression)
            crop_px = targets.camera.project(face.pose.to_camera(vertices))[0].double()
        surface = Surface(1000 * vertices[0].double(), model.triangles.long())
        return PredictedFace(surface, metric=True, pixels=self.inputs.faces[0].crop.to_photo(crop_px) - 0.5)
