"""Protocols and metrics: landmarks, surfaces, detail, and how results are written down."""

from mien.evaluation.landmarks import LandmarkReport as LandmarkReport
from mien.evaluation.landmarks import evaluate_landmarks as evaluate_landmarks
