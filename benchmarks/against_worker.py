"""One piece of work of `benchmarks/against.py`, in the tree whose interpreter runs this file.

    PYTHON benchmarks/against_worker.py WORK DATA → one JSON list: seconds per unit, one per repeat
    PYTHON benchmarks/against_worker.py save OUT PHOTOS → the reconstructions of the photos

It uses only names that every version of mien has had. All seconds but those of `threads` are processor time.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import mien  # before torch: see mien.threads

# isort: split
import torch

from mien.rasterizer import rasterize

THREADS = "threads"
"""The only row by the clock: seconds with one thread and with two."""
Step = Callable[[], object]


def seconds(steps: Sequence[Step], *, repeats: int, clock: Callable[[], float] = time.process_time) -> list[float]:
    """Seconds per step of each pass over `steps`, after one pass to warm up."""
    found = []
    for _ in range(repeats + 1):
        start = clock()
        for step in steps:
            step()
        found.append((clock() - start) / len(steps))
    return found[1:]


def faces(data: Path, mode: str, *, detail: bool, repeats: int) -> list[float]:
    """Photo to result in memory, per photo; each demo portrait shows one face."""
    reconstructor = mien.Reconstructor(mode=mode, detail=detail)
    photos = [mien.read_photo(path) for path in sorted((data / "demo").glob("portrait_*.jpg"))]
    return seconds([lambda photo=photo: reconstructor(photo) for photo in photos], repeats=repeats)


def save(out: Path, photos: Sequence[Path]) -> None:
    """Fit the most prominent face of each photo, without detail, into OUT/PHOTO."""
    reconstructor = mien.Reconstructor(mode="fit", detail=False, max_faces=1)
    for photo in photos:
        reconstructor(photo)[0].save(out / photo.stem)


def threads(data: Path) -> list[float]:
    """Wall-clock time of a fit with one thread, then with two."""
    reconstructor = mien.Reconstructor(mode="fit", detail=False)
    photo = mien.read_photo(data / "demo" / "portrait_a.jpg")
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(min(seconds([lambda: reconstructor(photo)], repeats=3, clock=time.perf_counter)))
    return found


def rasterizer(image_size: int, subdivisions: int) -> list[float]:
    """Forward and backward pass over the mean face."""
    model = mien.load_model()
    turned = model.mean * torch.tensor([1.0, -1.0, -1.0]) + torch.tensor([0.0, 0.0, 0.6])
    focal_ndc = 0.6 / 0.25 * 2
    vertices = torch.cat([turned[:, :2] * focal_ndc / turned[:, 2:], turned[:, 2:]], dim=-1)
    triangles, colours = model.triangles, model.albedo_mean.clone()
    for _ in range(subdivisions):
        vertices, colours, triangles = _subdivided(vertices, colours, triangles)

    def both() -> None:
        corners, attributes = vertices[None].clone().requires_grad_(), colours[None].clone().requires_grad_()
        size = (image_size, image_size)
        out = rasterize(corners, triangles, attributes, image_size=size, near=0.05, far=5.0)
        (out.image.square().mean() + out.alpha.mean()).backward()

    return seconds([both] * 5, repeats=5)


def _subdivided(
    vertices: torch.Tensor, colours: torch.Tensor, triangles: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each triangle in four."""
    edges = torch.cat([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]]).sort(1).values
    unique, inverse = torch.unique(edges, dim=0, return_inverse=True)
    ab, bc, ca = (inverse + len(vertices)).view(3, -1)
    a, b, c = triangles.T
    parts = [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
    finer = torch.cat([torch.stack(part, dim=1) for part in parts]).to(triangles.dtype)
    return *(torch.cat([x, x[unique].mean(1)]) for x in (vertices, colours)), finer  # pyright: ignore


WORK: dict[str, Callable[[Path], list[float]]] = {
    "fit": lambda data: faces(data, "fit", detail=False, repeats=2),
    "fit, detail": lambda data: faces(data, "fit", detail=True, repeats=1),
    "auto": lambda data: faces(data, "auto", detail=False, repeats=2),
    "auto, detail": lambda data: faces(data, "auto", detail=True, repeats=1),
    "net": lambda data: faces(data, "net", detail=False, repeats=5),
    "net, detail": lambda data: faces(data, "net", detail=True, repeats=5),
    "rasterizer, 10k vertices": lambda data: rasterizer(224, 0),
    "rasterizer, 38k vertices": lambda data: rasterizer(224, 1),
    THREADS: threads,
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if sys.argv[1] != THREADS:
        torch.set_num_threads(1)
    if sys.argv[1] == "save":
        save(Path(sys.argv[2]), [Path(photo) for photo in sys.argv[3:]])
    else:
        print(json.dumps(WORK[sys.argv[1]](Path(sys.argv[2]))))
