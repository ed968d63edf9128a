#!/usr/bin/env bash
# bpy 5.0.1 (PyPI), Blender as a Python module; needs Python 3.11.
#
# The USD importer takes the weights of blend shapes from samples in time only. A SkelAnimation whose blendShapeWeights have a
# plain value, as a face with a still expression has, comes in with its shape keys and with all their values at 0, without
# a warning. The same weights as one sample at frame 0 are right. In USD a plain value holds at each time that has no
# samples: UsdSkelAnimQuery.ComputeBlendShapeWeights (usd-core 26.11) gives 0.5 at all times for the first file.
# Expected: a shape key with the value 0.5.
# Seen on 2026-11-30, Python 3.11. Exit status: 0 while the behaviour is as described, 1 when it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

cat > face.usda <<'EOF'
#usda 1.0
(
    metersPerUnit = 1
    upAxis = "Z"
)

def SkelRoot "root"
{
    def Skeleton "skeleton" (
        prepend apiSchemas = ["SkelBindingAPI"]
    )
    {
        uniform token[] joints = ["head"]
        uniform matrix4d[] bindTransforms = [( (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1) )]
        uniform matrix4d[] restTransforms = [( (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1) )]
        rel skel:animationSource = </root/skeleton/expression>

        def SkelAnimation "expression"
        {
            uniform token[] blendShapes = ["smile"]
            float[] blendShapeWeights = [0.5]
        }
    }

    def Mesh "face" (
        prepend apiSchemas = ["SkelBindingAPI"]
    )
    {
        int[] faceVertexCounts = [3]
        int[] faceVertexIndices = [0, 1, 2]
        point3f[] points = [(0, 0, 0), (1, 0, 0), (0, 1, 0)]
        uniform token subdivisionScheme = "none"
        uniform token[] skel:blendShapes = ["smile"]
        rel skel:blendShapeTargets = </root/face/smile>
        rel skel:skeleton = </root/skeleton>
        int[] primvars:skel:jointIndices = [0, 0, 0] (
            elementSize = 1
            interpolation = "vertex"
        )
        float[] primvars:skel:jointWeights = [1, 1, 1] (
            elementSize = 1
            interpolation = "vertex"
        )

        def BlendShape "smile"
        {
            uniform vector3f[] offsets = [(0, 0, 1)]
            uniform int[] pointIndices = [1]
        }
    }
}
EOF
sed 's/blendShapeWeights = \(.*\)/blendShapeWeights.timeSamples = { 0: \1 }/' face.usda > sampled.usda

cat > check.py <<'EOF'
import sys

import bpy


def height(path):
    """Height of the vertex that the blend shape lifts."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    bpy.ops.wm.usd_import(filepath=path)
    bpy.context.scene.frame_set(0)
    (face,) = (item for item in bpy.data.objects if item.type == "MESH")
    assert [key.name for key in face.data.shape_keys.key_blocks] == ["Basis", "smile"]
    return face.evaluated_get(bpy.context.evaluated_depsgraph_get()).data.vertices[1].co.z


seen = {name: height(f"{sys.argv[1]}/{name}.usda") for name in ("face", "sampled")}
print(f"bpy {bpy.app.version_string}: weight 0.5 lifts the vertex by {seen['face']}, as a sample by {seen['sampled']}")
if seen != {"face": 0.0, "sampled": 0.5}:
    sys.exit("the behaviour has changed")
EOF

python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check bpy==5.0.1
venv/bin/python check.py "$folder"
