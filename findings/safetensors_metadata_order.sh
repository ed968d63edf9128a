#!/bin/sh
# safetensors 0.8.0: the same tensors and the same metadata give different bytes at each save.
#
# Expected: `save` is a function of its arguments, so that a file can be named by its hash, kept in a content-addressed
#   cache and compared between builds.
# Seen: 50 saves of one tensor with five metadata keys, in one process, give more than ten different files. The order
#   of the keys in the header's __metadata__ changes with each call; with one key, or without metadata, all files are equal.
# Meaning: hash the tensors and the sorted metadata, not the file; builds that compare files must write the header themselves.
set -eu

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet safetensors==0.8.0 numpy==2.2.6

"$folder/venv/bin/python" - <<'EOF'
import hashlib

import numpy as np
from safetensors.numpy import save

tensors = {"weight": np.zeros(2, np.float32)}


def different_files(keys: str) -> int:
    metadata = {key: key for key in keys.split()}
    return len({hashlib.sha256(save(tensors, metadata=metadata)).hexdigest() for _ in range(50)})


five, one = different_files("author licence model steps version"), different_files("version")
print(f"50 saves with five metadata keys: {five} different files; with one key: {one}")
assert one == 1
assert five > 10, "safetensors writes metadata in one order now"
EOF
