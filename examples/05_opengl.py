"""Draw a reconstructed mesh over its photo with OpenGL.

Usage: python examples/05_opengl.py out/photo/face0 photo.jpg OUT.png

The folder has face.obj and coefficients.json (`mien reconstruct --formats obj,json`). Needs moderngl and Pillow, and
EGL where there is no screen.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import moderngl
import numpy as np
from PIL import Image

VERTEX_SHADER = """
#version 330
uniform mat4 projection, view;
in vec3 position;
void main() { gl_Position = projection * view * vec4(position, 1); }
"""
FRAGMENT_SHADER = """
#version 330
out vec4 colour;
void main() { colour = vec4(0.3, 0.8, 0.4, 1); }
"""


def render(folder: Path) -> Image.Image:
    """The mesh in one colour over nothing, as large as the photo."""
    rows = [line.split() for line in (folder / "face.obj").read_text().splitlines()]
    vertices = np.array([row[1:4] for row in rows if row[:1] == ["v"]], "f4")
    triangles = np.array([[int(c.split("/")[0]) - 1 for c in row[1:]] for row in rows if row[:1] == ["f"]], "i4")
    result = json.loads((folder / "coefficients.json").read_text())
    matrices, size = result["matrices"], tuple(result["image_size_px"])

    context = moderngl.create_standalone_context(backend="egl")
    context.enable(moderngl.DEPTH_TEST)
    program = context.program(vertex_shader=VERTEX_SHADER, fragment_shader=FRAGMENT_SHADER)
    for name, key in (("projection", "projection_opengl"), ("view", "view_opengl")):
        program[name].write(np.array(matrices[key], "f4").T.tobytes())  # OpenGL stores columns
    buffers = [(context.buffer(vertices.tobytes()), "3f", "position")]
    mesh = context.vertex_array(program, buffers, index_buffer=context.buffer(triangles.tobytes()))
    target = context.framebuffer([context.renderbuffer(size)], context.depth_renderbuffer(size))
    target.use()
    target.clear()
    mesh.render()
    picture = Image.frombytes("RGBA", size, target.read(components=4))
    return picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)  # OpenGL's first row is the lowest


def main(folder: Path, photo: str, out: str) -> None:
    picture = Image.open(photo).convert("RGBA")
    picture.alpha_composite(render(folder))
    picture.convert("RGB").save(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:4])
