"""Size limits of face models, which readers check before they allocate memory."""

MAX_VERTICES = 200_000
MAX_TRIANGLES = 400_000
MAX_COMPONENTS = 1_000
