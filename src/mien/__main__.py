"""Runs the command line by `python -m mien`."""

from mien.cli import main

if __name__ == "__main__":
    main()
