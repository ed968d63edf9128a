"""Names in the files of synthetic faces, kept from mien 0.1 so that files of every version load."""

STORE_FORMAT = "mien-drawn-1"
PLAN_FILE = "drawn.json"
TENSOR_NAMES = {"gt_px": "mesh_px", "detected_px": "found_px"}
"""Names in a store's shards of the fields of `FaceBatch` that have another name there."""
GT_PREFIX = "truth."
"""Prefix in a store's shards of the fields of `CropSpaceParameters`."""
SAMPLES_FILE = "truth.npz"
"""Ground truth of the faces that `write_samples` writes."""
SKINS_FORMAT = "mien-skins-1"
SKIN_TENSORS = ("albedo", "offset")
"""Names in a skins file of the fields of `SkinBank`, in their order."""
