"""Measurements of what the package makes: landmarks, surfaces, likeness, and how they are written down."""

from mien.evaluation.landmarks import LandmarkReport as LandmarkReport
from mien.evaluation.landmarks import evaluate_landmarks as evaluate_landmarks
