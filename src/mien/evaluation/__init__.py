"""Evaluation protocols and metrics: landmarks, surfaces, relief; and the report of results."""

from mien.evaluation.landmarks import LandmarkReport as LandmarkReport
from mien.evaluation.landmarks import evaluate_landmarks as evaluate_landmarks
