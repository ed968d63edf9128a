"""Training the networks: data, losses, the loop and its checkpoints, reports.

    photos ── prepare ──► store ──┐
    face model ── synthetic ──────┴► source ──► batches ── loop (objective, checkpoint, monitor) ──► encoder ── report

`loop.train` is the page to read first; `base` is what it trains. Needs the packages of `mien[train]`.
"""
