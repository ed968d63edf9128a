"""Renders synthetic faces with ground truth.

    seed, number ── population ──► coefficients, camera, light ── faces ──► scene ── scene_cache ──► FaceBatch
                                                               └─ detailed_faces ─┘
                    relief (canvas, wrinkle_atlas, wrinkles, blemishes) ──► detail maps

- `population` samples people, poses, lights and cameras; `skins` collects skin colours of photos for them.
- `faces` renders the model with colours per vertex; `detailed_faces` renders it with known detail maps, which `relief`
  paints on the UV map: wrinkles and bumps as displacement, skin blemishes as texture offset.
- `scene_cache` adds background and occluders, keeps scenes in memory, and simulates a camera.
- `store` writes synthetic faces to disk and reads them back; `samples` writes images to look at.

A face is a function of the seed and its number alone: in any batch, process or run it is the same face.
"""
