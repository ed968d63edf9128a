"""`python -m mien.cli`, for launchers that start modules, such as torchrun."""

from mien.cli.app import main

main()
