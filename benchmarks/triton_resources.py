"""Compile the GPU kernels ahead of time, without a GPU: registers, spills and shared memory of each.

    python benchmarks/triton_resources.py                          a Markdown table for sm_80 and sm_90
    python benchmarks/triton_resources.py --channels 1 3 6 --json F   other numbers of channels; one line of JSON in F

Needs Triton (`pip install 'mien[gpu]'`), whose wheel holds ptxas and cuobjdump.
"""

from __future__ import annotations

import argparse
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
from mien.rasterizer import gpu_kernels as kernels

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


@dataclass(frozen=True)
class Resources:
    kernel: str
    capability: int
    channels: int
    registers: int
    spilled_bytes: int
    shared_bytes: int
    cubin_bytes: int


def signature_of(kernel, constants: dict[str, object]) -> dict[str, str]:
    kinds = dict.fromkeys(FLOAT_POINTERS, "*fp32") | dict.fromkeys(INT_POINTERS, "*i32") | dict.fromkeys(FLOATS, "fp32")
    kinds |= {"boxes": "*i64", "chunk_boxes": "*i64"}
    return {name: "constexpr" if name in constants else kinds.get(name, "i32") for name in kernel.arg_names}


def compile_one(kernel, constants: dict[str, object], warps: int, capability: int, channels: int) -> Resources:
    source = ASTSource(
        kernel, signature_of(kernel, constants), {(kernel.arg_names.index(k),): v for k, v in constants.items()}
    )
    compiled = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps, "enable_fp_fusion": True}
    )
    cubin = compiled.asm["cubin"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    usage = {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", report)}
    return Resources(
        kernel.__name__,
        capability,
        channels,
        usage["REG"],
        usage["STACK"] + usage["LOCAL"],
        usage["SHARED"],
        len(cubin),
    )


def compile_all(capability: int, channels: int) -> list[Resources]:
    launch = gpu.Launch()
    padded = 1 << (channels - 1).bit_length()
    record = 8 * -(-(kernels.PIXEL_HEAD.value + channels) // 8)
    modes = {"CULL": False, "LINEAR": False}
    draw = {"LINEAR": False, "CHANNELS": padded, "TILE_WIDTH": launch.tile_width, "TILE_HEIGHT": launch.tile_height}
    back = {"CHANNELS": padded, "RECORD_SIZE": record}
    jobs = [
        (kernels.set_up, modes, 1),
        (kernels.bin_chunks, {"BLOCK": 256}, 2),
        (kernels.draw, draw | {"SOFT": True}, launch.draw_warps),
        (kernels.pack, back | {"BLOCK": 128}, 4),
        (kernels.push_back, modes | back | {"LANES": launch.lanes, "SMALL_BOX": launch.small_box}, launch.back_warps),
    ]
    return [compile_one(kernel, constants, warps, capability, channels) for kernel, constants, warps in jobs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, nargs="+", default=[3])
    parser.add_argument("--capabilities", type=int, nargs="+", default=[80, 90], help="80 is A100, 90 is H100")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write one line of JSON there")
    options = parser.parse_args()
    found = [r for sm in options.capabilities for c in options.channels for r in compile_all(sm, c)]
    print(f"triton {triton.__version__}\n")
    print("| kernel | target | channels | registers | spilled, bytes a thread | shared, bytes | code, KB |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for r in found:
        print(
            f"| {r.kernel} | sm_{r.capability} | {r.channels} | {r.registers} | {r.spilled_bytes} | {r.shared_bytes} "
            f"| {r.cubin_bytes / 1024:.0f} |"
        )
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in found]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
