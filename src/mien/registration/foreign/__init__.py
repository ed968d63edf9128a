"""Coefficients of other projects."""
