"""Input and output: photos, result folders, atomic writing, 8-bit pixels."""
