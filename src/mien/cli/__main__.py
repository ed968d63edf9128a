"""`python -m mien.cli`, for launchers that start modules, as torchrun does."""

from mien.cli.app import main

main()
