"""Speed of the soft rasterizer.

    python benchmarks/rasterizer.py                     a Markdown table over meshes, image sizes, batches, threads
    python benchmarks/rasterizer.py --quick             a minute less: the figures that the project watches
    python benchmarks/rasterizer.py --quick --json F    the same, as one line of JSON in the file F

Times are medians in milliseconds over repeated calls from Python, autograd included, with the tenth and ninetieth
percentile where they are shown. A pair is a pixel and a triangle that acts on it: the unit of the work.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import resource
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mien.rasterizer import _native, rasterize, rasterize_hard

NEAR, FAR = 5.0, 15.0


@dataclass(frozen=True)
class Timing:
    median_ms: float
    low_ms: float
    high_ms: float

    def __str__(self) -> str:
        return f"{self.median_ms:.1f} ({self.low_ms:.1f}–{self.high_ms:.1f})"


def face_like_mesh(side: int) -> tuple[Tensor, Tensor, Tensor]:
    """A bumpy half ellipsoid of side² vertices that fills most of the picture: NDC (V,3), triangles, colours."""
    u, v = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="xy")
    x, y = u * (1 - v * v / 2).sqrt(), v * (1 - u * u / 2).sqrt()  # the square grid on a disc
    polar, azimuth = torch.hypot(x, y) * math.radians(80), torch.atan2(y, x)
    x, y, z = polar.sin() * azimuth.cos(), polar.sin() * azimuth.sin(), polar.cos()
    nose = 0.25 * torch.exp(-((x / 0.18) ** 2) - ((y + 0.05) / 0.3) ** 2)
    eyes = -0.12 * torch.exp(-(((x.abs() - 0.38) / 0.15) ** 2) - ((y - 0.3) / 0.1) ** 2)
    radius = 1 + nose + eyes + 0.01 * torch.sin(9 * x) * torch.sin(11 * y)
    points = torch.stack([0.8 * x * radius, 0.98 * y * radius, 0.8 * z * radius], -1).reshape(-1, 3)
    depth = 10.0 - points[:, 2]
    ndc = torch.stack([9.8 * points[:, 0] / depth, 9.8 * points[:, 1] / depth, depth], -1)
    index = torch.arange(side * side, dtype=torch.int32).reshape(side, side)
    a, b, c, d = (index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1])
    triangles = torch.stack([torch.stack([a, b, c], -1), torch.stack([a, c, d], -1)], -2).reshape(-1, 3)
    return ndc, triangles, (0.5 + 0.4 * torch.sin(13 * points)).clamp(0, 1)


def timed(call, seconds: float) -> Timing:
    call()
    durations: list[float] = []
    end = time.perf_counter() + seconds
    while len(durations) < 5 or (time.perf_counter() < end and len(durations) < 200):
        start = time.perf_counter()
        call()
        durations.append(1e3 * (time.perf_counter() - start))
    durations.sort()
    count = len(durations)
    return Timing(durations[count // 2], durations[count // 10], durations[count - 1 - count // 10])


@dataclass(frozen=True)
class Case:
    side: int
    image: int
    batch: int
    channels: int
    sigma: float
    threads: int

    def measure(self, seconds: float) -> tuple[Timing, Timing, int]:
        """Forward, forward + backward, and the pairs of one image."""
        torch.set_num_threads(self.threads)
        ndc, triangles, colours = face_like_mesh(self.side)
        attributes = colours.repeat(1, 1 + self.channels // 3)[:, : self.channels]
        vertices = ndc.expand(self.batch, -1, -1).contiguous().requires_grad_()
        attributes = attributes.expand(self.batch, -1, -1).contiguous().requires_grad_()
        size = (self.image, self.image)
        image_grad = torch.randn(self.batch, self.channels, *size)
        alpha_grad = torch.randn(self.batch, *size)

        def forward():
            return rasterize(vertices, triangles, attributes, image_size=size, sigma=self.sigma, near=NEAR, far=FAR)

        def both() -> None:
            out = forward()
            torch.autograd.grad((out.image, out.alpha), (vertices, attributes), (image_grad, alpha_grad))

        near, far = torch.tensor([NEAR]), torch.tensor([FAR])
        pairs = _native.count_pairs(
            ndc[None].numpy(), triangles.numpy(), near.numpy(), far.numpy(), *size, self.sigma, 1e-4, False
        )
        return timed(forward, seconds), timed(both, seconds), pairs


def quick() -> dict[str, object]:
    """The figures that the project watches."""
    result: dict[str, object] = {}
    for threads, name in ((1, "cpu_1_thread_ms"), (2, "cpu_2_threads_ms")):
        forward, both, pairs = Case(189, 224, 1, 3, 1e-5, threads).measure(3.0)
        result[name] = round(both.median_ms, 2)
        result[f"{name}_p10_p90"] = [round(both.low_ms, 2), round(both.high_ms, 2)]
        result[name.replace("cpu", "cpu_forward")] = round(forward.median_ms, 2)
        result["pairs"] = pairs
        if threads == 1:
            result["ns_per_pair"] = round(1e6 * both.median_ms / pairs, 1)
    for channels in (3, 6):
        for threads in (1, 2):
            _, both, _ = Case(96, 224, 1, channels, 1e-5, threads).measure(1.5)
            result[f"face_9k_{channels}_channels_{threads}_threads_ms"] = round(both.median_ms, 2)
    torch.set_num_threads(1)
    ndc, triangles, _ = face_like_mesh(189)
    hard = timed(lambda: rasterize_hard(ndc[None], triangles, image_size=(224, 224), near=NEAR, far=FAR), 1.0)
    result["hard_1_thread_ms"] = round(hard.median_ms, 2)
    result["fma_rate_gflops"] = round(_native.measure_fma_rate(), 1)
    result["isa"] = _native.current_isa()
    result["machine"] = f"{platform.machine()}, torch {torch.__version__}"
    return result


def table(most_threads: int) -> None:
    print(f"isa {_native.current_isa()}, {_native.measure_fma_rate():.0f} GFLOP/s a thread, {platform.machine()}\n")
    print(
        "| vertices | triangles | image | batch | C | sigma | threads | forward ms | + backward ms | pairs | ns/pair |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    cases = [Case(side, 224, 1, 3, 1e-5, 1) for side in (50, 96, 189, 317)]
    cases += [Case(189, 224, 1, 3, 1e-5, threads) for threads in range(2, most_threads + 1)]
    cases += [Case(96, 224, 1, channels, 1e-5, 1) for channels in (1, 4, 5, 6)]
    cases += [Case(189, image, 1, 3, 1e-5, 1) for image in (512, 1024)]
    cases += [Case(side, 224, 1, 3, 1e-4, 1) for side in (50, 96, 189, 317)]
    cases += [Case(96, 224, batch, 3, 1e-5, most_threads) for batch in (1, 8, 32)]
    for case in cases:
        forward, both, pairs = case.measure(1.0)
        per_pair = 1e6 * both.median_ms / (pairs * case.batch)
        print(
            f"| {case.side**2} | {2 * (case.side - 1) ** 2} | {case.image}² | {case.batch} | {case.channels} "
            f"| {case.sigma:g} | {case.threads} | {forward} | {both} | {pairs * case.batch} | {per_pair:.1f} |"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\npeak memory of the process: {peak:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only the figures that the project watches")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write them there, as one line (with --quick)")
    parser.add_argument("--isa", choices=_native.available_isas().split(), help="instead of the best one")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="the most threads to try")
    options = parser.parse_args()
    if options.isa:
        _native.select_isa(options.isa)
    if not options.quick:
        return table(options.threads)
    line = json.dumps(quick())
    if options.json:
        options.json.write_text(line + "\n", encoding="utf-8")
    return print(line)


if __name__ == "__main__":
    main()
