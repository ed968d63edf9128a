"""Light on a fixed shape: visibility, self-shadowed spherical harmonics, and a small renderer for pictures."""

from __future__ import annotations

import numpy as np

Y00 = 0.282095  # the constant spherical harmonic


def vertex_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Unit normals (V, 3), area-weighted."""
    corners = vertices[triangles]
    face = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros_like(vertices)
    for k in range(3):
        np.add.at(normals, triangles[:, k], face)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def vertex_areas(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """A third of the area (V,) of the triangles around each vertex."""
    corners = vertices[triangles]
    area = 0.5 * np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    return np.bincount(triangles.ravel(), np.repeat(area / 3, 3), minlength=len(vertices))


def raster(points: np.ndarray, triangles: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Nearest triangle (H, W), -1 for none, its barycentrics (H, W, 3) and depth (H, W).

    `points` (V, 3): column, row, and depth that grows TOWARDS the viewer.
    """
    height, width = size
    corner = points[triangles]
    low = np.floor(corner[..., :2].min(1) - 0.5).astype(int).clip(0, None)
    high = np.ceil(corner[..., :2].max(1) - 0.5).astype(int)
    high = np.minimum(high, [width - 1, height - 1])
    span = (high - low + 1).clip(0, None)
    count = span[:, 0] * span[:, 1]
    owner = np.repeat(np.arange(len(triangles)), count)
    step = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    column = low[owner, 0] + step % span[owner, 0]
    row = low[owner, 1] + step // span[owner, 0]
    a, b, c = corner[:, 0], corner[:, 1], corner[:, 2]
    area = (b[:, 1] - c[:, 1]) * (a[:, 0] - c[:, 0]) + (c[:, 0] - b[:, 0]) * (a[:, 1] - c[:, 1])
    keep = np.abs(area[owner]) > 1e-9
    owner, column, row = owner[keep], column[keep], row[keep]
    dx, dy = column + 0.5 - c[owner, 0], row + 0.5 - c[owner, 1]
    first = ((b[owner, 1] - c[owner, 1]) * dx + (c[owner, 0] - b[owner, 0]) * dy) / area[owner]
    second = ((c[owner, 1] - a[owner, 1]) * dx + (a[owner, 0] - c[owner, 0]) * dy) / area[owner]
    weights = np.stack([first, second, 1 - first - second], 1)
    inside = (weights >= -1e-6).all(1)
    owner, column, row, weights = owner[inside], column[inside], row[inside], weights[inside]
    depth = (weights * corner[owner, :, 2]).sum(1)
    order = np.argsort(depth, kind="stable")  # the nearest is written last
    ids = np.full((height, width), -1)
    barycentrics = np.zeros((height, width, 3))
    nearest = np.full((height, width), -np.inf)
    at = (row[order], column[order])
    ids[at], barycentrics[at], nearest[at] = owner[order], weights[order], depth[order]
    return ids, barycentrics, nearest


def frame(direction: np.ndarray) -> np.ndarray:
    """Rotation (3, 3) whose last row is the unit direction: it looks along it."""
    up = np.array([0.0, 1.0, 0.0]) if abs(direction[1]) < 0.95 else np.array([1.0, 0.0, 0.0])
    right = np.cross(up, direction)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(direction, right), direction])


def seen_from(
    vertices: np.ndarray, triangles: np.ndarray, normals: np.ndarray, direction: np.ndarray, *, pixels: int = 224
) -> np.ndarray:
    """Whether each vertex (V,) sees infinitely far along the unit direction."""
    turned = vertices @ frame(direction).T
    scale = (pixels - 4) / np.ptp(turned[:, :2], axis=0).max()
    points = turned.copy()
    points[:, :2] = (turned[:, :2] - turned[:, :2].min(0)) * scale + 2
    depth = raster(points, triangles, (pixels, pixels))[2]
    column, row = points[:, :2].astype(int).T
    tolerance = 2.5  # mm; hides the map's own steps on slanting skin
    return (normals @ direction > 0.02) & (points[:, 2] > depth[row, column] - tolerance)


def harmonics(directions: np.ndarray) -> np.ndarray:
    """Real spherical harmonics (..., 9) of bands 0 to 2, orthonormal."""
    x, y, z = np.moveaxis(directions, -1, 0)
    return np.stack(
        [
            np.full_like(x, Y00),
            0.488603 * y,
            0.488603 * z,
            0.488603 * x,
            1.092548 * x * y,
            1.092548 * y * z,
            0.315392 * (3 * z * z - 1),
            1.092548 * x * z,
            0.546274 * (x * x - y * y),
        ],
        -1,
    )


def transfer(vertices: np.ndarray, triangles: np.ndarray, *, directions: int = 160) -> np.ndarray:
    """How much of each harmonic of the light arrives at each vertex (V, 9), own shadows included.

    Irradiance over pi: light of radiance one everywhere gives one on open skin (P.-P. Sloan, J. Kautz and
    J. Snyder, "Precomputed radiance transfer", SIGGRAPH 2002).
    """
    k = np.arange(directions) + 0.5
    height = 1 - 2 * k / directions
    turn = np.pi * (1 + 5**0.5) * k
    ring = np.sqrt(1 - height**2)
    sphere = np.stack([ring * np.cos(turn), height, ring * np.sin(turn)], 1)
    normals = vertex_normals(vertices, triangles)
    total = np.zeros((len(vertices), 9))
    for direction in sphere:
        visible = seen_from(vertices, triangles, normals, direction)
        total += np.outer(visible * (normals @ direction), harmonics(direction))
    return total * (4 * np.pi / directions) / np.pi


def render(
    vertices: np.ndarray,
    triangles: np.ndarray,
    colours: np.ndarray,
    *,
    size: tuple[int, int] = (420, 320),
    yaw: float = 0.0,
    span: float = 235.0,
    light: np.ndarray | None = None,
    supersample: int = 2,
) -> np.ndarray:
    """Picture (H, W, 3) of encoded vertex colours under light of nine harmonic coefficients, white behind.

    `yaw` in degrees; `span` is the picture's height in millimetres; the view is orthographic.
    """
    height, width = size[0] * supersample, size[1] * supersample
    turn = np.radians(yaw)
    rotation = np.array([[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]])
    turned = (vertices - [0, 0.5 * (vertices[:, 1].max() + vertices[:, 1].min()), 0]) @ rotation.T
    scale = height / span
    points = np.stack([width / 2 + scale * turned[:, 0], height / 2 - scale * turned[:, 1], turned[:, 2]], 1)
    ids, weights, _ = raster(points, triangles, (height, width))
    hit = ids >= 0
    corner = triangles[ids[hit]]
    normals = vertex_normals(turned, triangles)
    if light is None:
        light = mild_light()
    # irradiance: bands 0, 1, 2 of the clamped cosine weigh 1, 2/3, 1/4 (after division by pi)
    bands = np.array([1, 2 / 3, 2 / 3, 2 / 3, 0.25, 0.25, 0.25, 0.25, 0.25])
    shade = harmonics(normals) @ (bands * light)
    lit = colours * shade[:, None]
    picture = np.ones((height, width, 3))
    picture[hit] = (lit[corner] * weights[hit][..., None]).sum(1).clip(0, 1)
    return picture.reshape(size[0], supersample, size[1], supersample, 3).mean((1, 3))


def mild_light() -> np.ndarray:
    """Nine coefficients: mostly even, somewhat from the upper front left, one on skin that faces the viewer."""
    light = np.zeros(9)
    light[0] = 0.78 / Y00
    light[1], light[2], light[3] = 0.20, 0.42, -0.14
    return light
