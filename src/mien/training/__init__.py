"""Training of the networks: losses, the loop with its checkpoints, recipes, reports.

    photos ── data.prepare ──► store ──┐
    face model ── synthetic ───────────┴► sources ──► batches ── loop ──► weights file ── report
                                                                  │
                 objective (coarse | detail), optimization, checkpoint, monitor

Start reading at `loop.train`. `coarse` and `detail` are the objectives of the two networks, `run` goes from a
configuration to a weights file, and `recipe_run` runs the stages of a recipe. Needs the packages of `mien[train]`.
"""
