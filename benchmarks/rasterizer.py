"""Speed and memory of the soft rasterizer.

    python benchmarks/rasterizer.py                     Markdown tables, and a plot in --plot FILE; some ten minutes
    python benchmarks/rasterizer.py --tables pairs      one of them: pairs, sizes, memory, threads, others
    python benchmarks/rasterizer.py --quick             half a minute: the figures that the project watches
    python benchmarks/rasterizer.py --quick --json F    the same, as one line of JSON in the file F
    python benchmarks/rasterizer.py --device cuda       on a GPU, with nvdiffrast beside it where that is installed

Times are medians in milliseconds over repeated calls from Python, autograd included, with the tenth and ninetieth
percentile. A pair is a pixel and a triangle that acts on it: the unit of the work. Peak memory is what a call needs
beside its inputs: on the CPU the growth of a fresh process's resident set, on a GPU what torch allocated.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import math
import multiprocessing
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rasterizer_peers import FAR, NEAR, Scene, with_deodr, with_nvdiffrast, with_pytorch3d
from torch import Tensor

from mien.rasterizer import _native, rasterize_hard

# Arithmetic of one pair, about 180 operations forward and 320 backward, counted in the source of csrc/kernels.cpp for
# three channels with an exponential as 20 and a reciprocal as 4. The roofline is the time that these would take at the
# measured rate of multiply-adds, if all of them fused in pairs and no lane were idle.
FLOPS_PER_PAIR = 500


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


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def timed(call: Callable[[], object], seconds: float, clock: str = "wall") -> Timing:
    """Repeated for about so long, after a first call that warms up; one of ten times that length is the only one."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None

    def once() -> float:
        wait()
        start = CLOCKS[clock]()
        call()
        wait()
        return 1e3 * (CLOCKS[clock]() - start)

    first = once()
    if first > 1e4 * seconds:
        return Timing(first, first, first)
    durations = []
    end = time.perf_counter() + seconds
    while not durations or (time.perf_counter() < end and len(durations) < 200):
        durations.append(once())
    durations.sort()
    count = len(durations)
    return Timing(durations[count // 2], durations[count // 10], durations[count - 1 - count // 10])


@dataclass(frozen=True)
class Case:
    side: int = 189
    image: int = 224
    batch: int = 1
    channels: int = 3
    sigma: float = 1e-5
    threads: int = 1
    device: str = "cpu"
    clock: str = "wall"

    @property
    def triangles(self) -> int:
        return 2 * (self.side - 1) ** 2

    def scene(self) -> Scene:
        torch.set_num_threads(self.threads)
        ndc, triangles, colours = face_like_mesh(self.side)
        attributes = colours.repeat(1, 1 + self.channels // 3)[:, : self.channels]
        vertices, attributes = (
            tensor.expand(self.batch, -1, -1).contiguous().to(self.device).requires_grad_()
            for tensor in (ndc, attributes)
        )
        return Scene(vertices, triangles.to(self.device), attributes, (self.image, self.image), self.sigma)

    def measure(self, seconds: float) -> tuple[Timing, Timing]:
        """Forward, forward + backward."""
        scene = self.scene()
        return timed(scene.forward, seconds, self.clock), timed(scene.both, seconds, self.clock)

    def pairs(self) -> int:
        ndc, triangles, _ = face_like_mesh(self.side)
        near, far = torch.tensor([NEAR]), torch.tensor([FAR])
        one = _native.count_pairs(
            ndc[None].numpy(),
            triangles.numpy(),
            near.numpy(),
            far.numpy(),
            self.image,
            self.image,
            self.sigma,
            1e-4,
            False,
        )
        return self.batch * one

    @property
    def numbers(self) -> int:
        """Of the results (image, alpha, fragments, and what the backward pass keeps), and of all gradients."""
        pixels, vertices = self.image**2, self.side**2
        return self.batch * (pixels * (2 * self.channels + 2 + 5 + 4) + vertices * (3 + self.channels))

    def peak_mib(self) -> float:
        """What forward and backward need beside the inputs."""
        if self.device == "cpu":
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                return pool.apply(_resident_growth, (self,))
        scene = self.scene()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        scene.both()
        return (torch.cuda.max_memory_allocated() - before) / 2**20


def _resident_growth(case: Case) -> float:
    replace(case, side=5, image=8, batch=1).scene().both()  # the libraries' own
    scene = case.scene()
    before = _peak_resident_mib()
    scene.both()
    return _peak_resident_mib() - before


def _peak_resident_mib() -> float:
    """The largest resident set of this process; `ru_maxrss` would begin with that of the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def quick() -> dict[str, object]:
    """The figures that the project watches."""
    result: dict[str, object] = {}
    for threads, name in ((1, "cpu_1_thread_ms"), (2, "cpu_2_threads_ms")):
        forward, both = Case(threads=threads).measure(3.0)
        result[name] = round(both.median_ms, 2)
        result[f"{name}_p10_p90"] = [round(both.low_ms, 2), round(both.high_ms, 2)]
        result[name.replace("cpu", "cpu_forward")] = round(forward.median_ms, 2)
        if threads == 1:
            result["pairs"] = Case().pairs()
            result["ns_per_pair"] = round(1e6 * both.median_ms / Case().pairs(), 1)
    for channels in (3, 6):
        for threads in (1, 2):
            _, both = Case(side=96, channels=channels, threads=threads).measure(1.5)
            result[f"face_9k_{channels}_channels_{threads}_threads_ms"] = round(both.median_ms, 2)
    torch.set_num_threads(1)
    ndc, triangles, _ = face_like_mesh(189)
    hard = timed(lambda: rasterize_hard(ndc[None], triangles, image_size=(224, 224), near=NEAR, far=FAR), 1.0)
    result["hard_1_thread_ms"] = round(hard.median_ms, 2)
    result["fma_rate_gflops"] = round(_native.measure_fma_rate(), 1)
    result["isa"] = _native.current_isa()
    result["machine"] = f"{platform.machine()}, torch {torch.__version__}"
    return result


# ----------------------------------------------------------------------------------------------------- full tables


def print_table(title: str, header: list[str], rows: Iterable[list[object]]) -> None:
    print(f"\n### {title}\n\n| " + " | ".join(header) + " |\n|" + "---:|" * len(header))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |", flush=True)


SIDES = (50, 100, 189)  # 2.5k, 10k and 35.7k vertices
SIZES = (224, 512, 1024)
BATCHES = (1, 8, 32, 128)
SIGMAS = (1e-5, 1e-4)


def pairs_table(options: argparse.Namespace) -> None:
    """Cost against accepted pairs, from 2.5k to 200k triangles, beside the roofline."""
    rate = _native.measure_fma_rate()
    sides = (37, 51, 72, 101, 142, 189, 230, 317)
    cases = [Case(side=n, sigma=sigma, device=options.device, clock=options.clock) for sigma in SIGMAS for n in sides]
    measured = [(case, case.measure(options.seconds)[1], case.pairs()) for case in cases]
    rows = [
        [
            case.triangles,
            f"{case.sigma:g}",
            pairs,
            both,
            f"{1e6 * both.median_ms / pairs:.1f}",
            f"{1e-6 * pairs * FLOPS_PER_PAIR / rate:.2f}",
        ]
        for case, both, pairs in measured
    ]
    header = ["triangles", "sigma", "pairs", "forward + backward, ms", "ns/pair", "roofline, ms"]
    print_table("Cost against pairs, 224², one image, one thread", header, rows)
    print(f"\nRoofline: {FLOPS_PER_PAIR} operations a pair at {rate:.0f} GFLOP/s of multiply-adds on one thread.")
    if options.plot:
        draw_plot(measured, options.plot)


def matrix(options: argparse.Namespace, sigmas: tuple[float, ...] = SIGMAS) -> list[Case]:
    return [
        Case(side, image, batch, sigma=sigma, threads=options.threads, device=options.device, clock=options.clock)
        for side, image, batch, sigma in itertools.product(SIDES, SIZES, BATCHES, sigmas)
        if batch * image**2 <= options.pixels and side**2 in options.vertices
    ]


def sizes_table(options: argparse.Namespace) -> None:
    """Meshes, pictures, batches and softness."""
    cases = matrix(options)
    if options.device == "cpu":  # memory that a virtual machine touches for the first time costs as much as rendering
        torch.ones(max(case.numbers for case in cases))

    def rows() -> Iterator[list[object]]:
        for case in cases:
            forward, both = case.measure(options.seconds / 4)
            per_image = f"{both.median_ms / case.batch:.1f}"
            yield [case.side**2, f"{case.image}²", case.batch, f"{case.sigma:g}", forward, both, per_image]

    header = ["vertices", "image", "batch", "sigma", "forward, ms", "forward + backward, ms", "an image, ms"]
    print_table(f"All sizes, {options.device}, {options.threads} threads", header, rows())


def memory_table(options: argparse.Namespace) -> None:
    """Peak memory, also as a multiple of what the results and gradients themselves take."""

    def rows() -> Iterator[list[object]]:
        for case in matrix(options, sigmas=(1e-5,)):
            peak = case.peak_mib()
            yield [case.side**2, f"{case.image}²", case.batch, f"{peak:.0f}", f"{2**20 * peak / 4 / case.numbers:.2f}"]

    header = ["vertices", "image", "batch", "peak, MiB", "peak / (results + gradients)"]
    print_table(f"Peak memory of forward and backward, {options.device}, {options.threads} threads", header, rows())


def threads_table(options: argparse.Namespace) -> None:
    """One to all threads, on one image."""
    rows = []
    for side in SIDES:
        one_ms = math.nan
        for threads in range(1, options.threads + 1):
            forward, both = Case(side=side, threads=threads).measure(3 * options.seconds)
            one_ms = both.median_ms if threads == 1 else one_ms
            rows.append([side**2, threads, forward, both, f"{one_ms / both.median_ms:.2f}"])
    header = ["vertices", "threads", "forward, ms", "forward + backward, ms", "speed-up"]
    print_table("Threads: 224², one image", header, rows)


def draw_plot(measured: list[tuple[Case, Timing, int]], path: Path) -> None:
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for sigma, colour in ((1e-5, "tab:blue"), (1e-4, "tab:orange")):
        points = sorted(
            (pairs, both.median_ms, both.low_ms, both.high_ms) for c, both, pairs in measured if c.sigma == sigma
        )
        pairs, median, low, high = zip(*points, strict=True)
        axes.plot(pairs, median, "o-", color=colour, markersize=4, label=f"σ = {sigma:g}")
        axes.fill_between(pairs, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="pairs of a pixel and a triangle that acts on it",
        ylabel="forward + backward, ms",
        title="2.6k to 200k triangles at 224², one image, one thread",
    )
    axes.grid(which="both", alpha=0.25)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


# ---------------------------------------------------------------------------------------------- other rasterizers


def others_table(options: argparse.Namespace) -> None:
    """The same mesh and picture, where the package is installed; docs/rasterizer.md explains how to build them."""
    rows = []
    for name, package, device, call in (
        ("DEODR", "deodr", "cpu", with_deodr),
        ("PyTorch3D", "pytorch3d", options.device, with_pytorch3d),
        ("nvdiffrast", "nvdiffrast", "cuda", with_nvdiffrast),
    ):
        if importlib.util.find_spec(package) is None or device != options.device:
            print(f"\n{name} is not installed, or not for this device: left out.")
            continue
        for side in (96, 189):
            scene = Case(side, device=device).scene()
            theirs, ours = in_turns(call(scene), scene.both, options)
            rows.append([name, side**2, theirs, ours, f"{theirs.median_ms / ours.median_ms:.2f}"])
    if rows:
        header = ["", "vertices", "ms", "mien, ms", "times as long"]
        print_table("Other rasterizers: 224², one image, one thread", header, rows)


def in_turns(
    theirs: Callable[[], None], ours: Callable[[], None], options: argparse.Namespace
) -> tuple[Timing, Timing]:
    """Both for a fifth of the time, five times; of each the run with the lowest median."""
    runs = [[timed(call, options.seconds / 5, options.clock) for call in (theirs, ours)] for _ in range(5)]
    first, second = zip(*runs, strict=True)
    return min(first, key=lambda run: run.median_ms), min(second, key=lambda run: run.median_ms)


TABLES = {
    "pairs": pairs_table,
    "sizes": sizes_table,
    "memory": memory_table,
    "threads": threads_table,
    "others": others_table,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only the figures that the project watches")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write them there, as one line (with --quick)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw cost against pairs (needs matplotlib)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--isa", choices=_native.available_isas().split(), help="instead of the best one")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="the most threads to try")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="processor time is for one thread on a busy machine"
    )
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES), help="all of them if not given")
    parser.add_argument(
        "--pixels", type=int, default=2**25, help="the most of a batch; above the default, results alone are gigabytes"
    )
    meshes = [side**2 for side in SIDES]
    parser.add_argument("--vertices", type=int, nargs="+", choices=meshes, default=meshes, help="for sizes and memory")
    parser.add_argument("--seconds", type=float, default=1.0, help="measured for about this long per row")
    options = parser.parse_args()
    if options.isa:
        _native.select_isa(options.isa)
    if options.quick:
        line = json.dumps(quick())
        if options.json:
            options.json.write_text(line + "\n", encoding="utf-8")
        return print(line)
    cuda = options.device == "cuda"
    where = torch.cuda.get_device_name() if cuda else f"{platform.machine()}, {_native.current_isa()}"
    print(f"{where}, torch {torch.__version__}")
    for name in options.tables:
        if not (cuda and name == "threads"):
            TABLES[name](options)
    return None


if __name__ == "__main__":
    main()
