"""The command `mien`."""

from mien.cli.app import main as main
