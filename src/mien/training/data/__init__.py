"""Photos on disk become batches of augmented face crops.

    photos ── prepare ──► FaceStore (tar shards + index.json)
                              │ photos.PhotoFaces: crop, mirror, augment, camera_simulation
                              ▼
    synthetic faces ──► source.FaceSource ── stream(step) ──► batch.FaceBatch

- `prepare` detects the faces of photos and packs their crops, masks and landmarks into a store (`store`).
- `photos` reads a store in a seeded order and augments the crops (`augment`, `camera_simulation`).
- `source` mixes photo faces and synthetic faces (`mien.training.synthetic`) into one batch per step.
- `batch` is the batch itself; `workers` runs independent calls in processes.

Everything random is a function of a seed and a number, so that a resumed run sees the same batches.
"""
