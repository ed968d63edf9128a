"""Faults made on purpose: kills, damaged files, full disks, two writers and small memory: `make chaos`."""
