"""Compile the GPU kernels ahead of time, without a GPU: registers, spills and shared memory of each.

    python benchmarks/triton_resources.py                          a Markdown table for sm_80 and sm_90, three channels
    python benchmarks/triton_resources.py --all                    every variant up to 16 channels; some minutes
    python benchmarks/triton_resources.py --channels 1 3 6 --json F   other numbers of channels; one line of JSON in F

A second table has the worst of each kernel. A variant is a kernel with its constants: definitions and culling, soft or
hard, and the powers of two and record sizes that hold the channels. Triton further specialises each for arguments that
are 1 or multiples of 16, at the first call; these are compiled as for any number, which takes the most registers.

Needs Triton (`pip install 'mien[gpu]'`), whose wheel holds ptxas and cuobjdump.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mien.rasterizer import gpu
from mien.rasterizer import triton as kernels

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
FLOAT_POINTERS = [
    "positions",
    "attributes",
    "near",
    "far",
    "records",
    "background",
    "packed",
    "positions_grad",
    "attributes_grad",
    "image_in",
    "state",
    "image_grad",
    "alpha_grad",
    "image_out",
    "alpha_out",
    "barycentrics_out",
    "depth_out",
    "state_out",
]
INT_POINTERS = ("corners", "ids_out", "counts", "lists")
FLOATS = ("gamma", "reach", "reach_sq", "inverse_sigma")


Constants = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Variant:
    kernel: str
    constants: Constants
    warps: int


@dataclass(frozen=True)
class Resources:
    kernel: str
    constants: str
    capability: int
    registers: int
    spilled_bytes: int
    shared_bytes: int
    cubin_bytes: int


def variants(channel_counts: list[int], culls: tuple[bool, ...] = (False, True)) -> list[Variant]:
    """What `gpu` can launch for these numbers of channels; `culls` are those of the backward pass."""
    launch = gpu.Launch()
    tile = {"TILE_WIDTH": launch.tile_width, "TILE_HEIGHT": launch.tile_height}
    found = [
        *(
            variant("set_up", 1, CULL=cull, LINEAR=linear)
            for cull, linear in itertools.product((False, True), repeat=2)
        ),
        variant("bin_chunks", 2, BLOCK=256),
        variant("draw", launch.draw_warps, SOFT=False, LINEAR=False, CHANNELS=1, **tile),
    ]
    for channels in channel_counts:
        whole = gpu.padded_channels(channels)
        block = gpu.channel_blocks(channels)[0][1]  # the backward pass takes so many at once
        padded, record = gpu.padded_channels(block), gpu.record_size(block)
        found.append(variant("pack", 4, CHANNELS=padded, RECORD_SIZE=record, BLOCK=128))
        for linear in (False, True):
            found.append(variant("draw", launch.draw_warps, SOFT=True, LINEAR=linear, CHANNELS=whole, **tile))
            for cull in culls:
                sizes = {"LANES": launch.lanes, "SMALL_BOX": launch.small_box, "RECORD_SIZE": record}
                found.append(
                    variant("push_back", launch.back_warps, CULL=cull, LINEAR=linear, CHANNELS=padded, **sizes)
                )
    return list(dict.fromkeys(found))


def variant(kernel: str, warps: int, **constants: int) -> Variant:
    return Variant(kernel, tuple(constants.items()), warps)


def signature_of(kernel, constants: dict[str, int]) -> dict[str, str]:
    kinds = dict.fromkeys(FLOAT_POINTERS, "*fp32") | dict.fromkeys(INT_POINTERS, "*i32") | dict.fromkeys(FLOATS, "fp32")
    kinds |= {"boxes": "*i64", "chunk_boxes": "*i64"}
    return {name: "constexpr" if name in constants else kinds.get(name, "i32") for name in kernel.arg_names}


def compile_one(one: Variant, capability: int) -> Resources:
    kernel, constants = getattr(kernels, one.kernel), dict(one.constants)
    source = ASTSource(
        kernel, signature_of(kernel, constants), {(kernel.arg_names.index(k),): v for k, v in constants.items()}
    )
    compiled = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": one.warps, "enable_fp_fusion": True}
    )
    cubin = compiled.asm["cubin"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    usage = {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", report)}
    shown = ("CULL", "LINEAR", "SOFT", "CHANNELS", "RECORD_SIZE")
    return Resources(
        kernel=one.kernel,
        constants=" ".join(f"{name}={int(value)}" for name, value in one.constants if name in shown),
        capability=capability,
        registers=usage["REG"],
        spilled_bytes=usage["STACK"] + usage["LOCAL"],
        shared_bytes=usage["SHARED"],
        cubin_bytes=len(cubin),
    )


def print_worst(found: list[Resources]) -> None:
    print("\n| kernel | target | variants | most registers | most spilled, bytes a thread | most shared, bytes |")
    print("|---|---|---:|---:|---:|---:|")
    for kernel, capability in dict.fromkeys((r.kernel, r.capability) for r in found):
        those = [r for r in found if (r.kernel, r.capability) == (kernel, capability)]
        registers = max(r.registers for r in those)
        spilled = max(r.spilled_bytes for r in those)
        shared = max(r.shared_bytes for r in those)
        print(f"| {kernel} | sm_{capability} | {len(those)} | {registers} | {spilled} | {shared} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, nargs="+", default=[3])
    parser.add_argument("--all", action="store_true", help="every variant up to 16 channels")
    parser.add_argument("--capabilities", type=int, nargs="+", default=[80, 90], help="80 is A100, 90 is H100")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write one line of JSON there")
    options = parser.parse_args()
    chosen = variants(list(range(1, 17))) if options.all else variants(options.channels, culls=(False,))
    print(f"triton {triton.__version__}; {len(chosen)} variants a target\n")
    print("| kernel | constants | target | registers | spilled, bytes a thread | shared, bytes | code, KB |")
    print("|---|---|---|---:|---:|---:|---:|")
    found = []
    for capability, one in itertools.product(options.capabilities, chosen):
        r = compile_one(one, capability)
        found.append(r)
        print(
            f"| {r.kernel} | {r.constants} | sm_{r.capability} | {r.registers} | {r.spilled_bytes} | {r.shared_bytes} "
            f"| {r.cubin_bytes / 1024:.0f} |",
            flush=True,
        )
    print_worst(found)
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in found]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
