"""Synthetic faces with ground truth."""
