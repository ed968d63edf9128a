"""Coefficient vectors of other projects."""
