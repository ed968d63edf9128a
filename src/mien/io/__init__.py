"""Photos in, result folders out; whole files or none."""
