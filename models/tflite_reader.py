"""Read the graph and the weights of a .tflite file, as far as the converter needs it.

A .tflite file is a FlatBuffer: every table starts with a signed offset to its vtable, which lists where each
field lies (0: absent, the default holds). The field numbers below are those of the public schema
(tensorflow/lite/schema/schema.fbs). No TensorFlow package is needed, and nothing of the file is executed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

OPERATORS = {
    0: "ADD", 1: "AVERAGE_POOL_2D", 2: "CONCATENATION", 3: "CONV_2D", 4: "DEPTHWISE_CONV_2D",
    6: "DEQUANTIZE", 9: "FULLY_CONNECTED", 14: "LOGISTIC", 17: "MAX_POOL_2D", 18: "MUL", 19: "RELU",
    21: "RELU6", 22: "RESHAPE", 23: "RESIZE_BILINEAR", 32: "CUSTOM", 34: "PAD", 36: "GATHER", 39: "TRANSPOSE",
    40: "MEAN", 41: "SUB", 45: "STRIDED_SLICE", 49: "SPLIT", 54: "PRELU", 67: "TRANSPOSE_CONV", 83: "PACK",
    107: "GATHER_ND", 117: "HARD_SWISH", 124: "DENSIFY",
}  # fmt: skip
DTYPES = {0: np.float32, 1: np.float16, 2: np.int32, 3: np.uint8, 4: np.int64, 9: np.int8}
SPARSE_DIMENSION = 1
ACTIVATIONS = {0: "none", 1: "relu", 3: "relu6"}


class Table:
    """One FlatBuffer table; fields are asked for by their number in the schema."""

    def __init__(self, buffer: bytes, position: int) -> None:
        self.buffer = buffer
        self.position = position
        self.vtable = position - struct.unpack_from("<i", buffer, position)[0]
        self.vtable_size = struct.unpack_from("<H", buffer, self.vtable)[0]

    def _field(self, number: int) -> int:
        slot = 4 + 2 * number
        if slot >= self.vtable_size:
            return 0
        offset = struct.unpack_from("<H", self.buffer, self.vtable + slot)[0]
        return self.position + offset if offset else 0

    def scalar(self, number: int, code: str = "i", default: int | float = 0) -> Any:
        at = self._field(number)
        return struct.unpack_from("<" + code, self.buffer, at)[0] if at else default

    def _target(self, number: int) -> int:
        at = self._field(number)
        return at + struct.unpack_from("<I", self.buffer, at)[0] if at else 0

    def table(self, number: int) -> Table | None:
        at = self._target(number)
        return Table(self.buffer, at) if at else None

    def tables(self, number: int) -> list[Table]:
        at = self._target(number)
        if not at:
            return []
        count = struct.unpack_from("<I", self.buffer, at)[0]
        starts = [at + 4 + 4 * i for i in range(count)]
        return [Table(self.buffer, s + struct.unpack_from("<I", self.buffer, s)[0]) for s in starts]

    def array(self, number: int, dtype: Any = np.int32) -> np.ndarray:
        at = self._target(number)
        if not at:
            return np.zeros(0, dtype)
        count = struct.unpack_from("<I", self.buffer, at)[0]
        return np.frombuffer(self.buffer, dtype, count, at + 4)

    def text(self, number: int) -> str:
        return self.array(number, np.uint8).tobytes().decode()


@dataclass(frozen=True)
class GraphTensor:
    """A tensor of the graph; `data` is None where it is computed."""

    name: str
    shape: tuple[int, ...]
    data: np.ndarray | None


@dataclass(frozen=True)
class GraphOperator:
    """One operator; `options` is the schema's table of its settings."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Table | None
    custom_options: bytes


@dataclass(frozen=True)
class Graph:
    """The only subgraph of a model."""

    tensors: tuple[GraphTensor, ...]
    operators: tuple[GraphOperator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def _densify(values: np.ndarray, shape: tuple[int, ...], sparsity: Table) -> np.ndarray:
    """Expand TFLite's compressed tensor: levels in traversal order, each dense or with a row index."""
    traversal = [int(v) for v in sparsity.array(0)]
    block_map = [int(v) for v in sparsity.array(1)]
    levels: list[tuple[int, np.ndarray, np.ndarray]] = []
    for level in sparsity.tables(2):
        integer = {1: np.int32, 2: np.uint16, 3: np.uint8}
        if level.scalar(0, "b") != SPARSE_DIMENSION:
            levels.append((level.scalar(1), np.zeros(0), np.zeros(0)))
            continue
        segments, indices = level.table(3), level.table(5)
        if segments is None or indices is None:
            raise ValueError("a sparse dimension has no segments or indices")
        levels.append(
            (-1, segments.array(0, integer[level.scalar(2, "B")]), indices.array(0, integer[level.scalar(4, "B")]))
        )
    # Positions are expanded level by level: coordinates of every stored node so far.
    coordinates = np.zeros((1, 0), np.int64)
    for size, segments, indices in levels:
        nodes = len(coordinates)
        if size >= 0:
            parents, own = np.repeat(np.arange(nodes), size), np.tile(np.arange(size), nodes)
        else:
            counts = np.diff(segments.astype(np.int64))
            parents, own = np.repeat(np.arange(nodes), counts), indices.astype(np.int64)
        coordinates = np.concatenate([coordinates[parents], own[:, None]], 1)
    full = np.zeros((len(coordinates), len(shape)), np.int64)
    block_size = {len(shape) + i: levels[traversal.index(len(shape) + i)][0] for i in range(len(block_map))}
    for column, axis in enumerate(traversal):
        if axis >= len(shape):
            full[:, block_map[axis - len(shape)]] += coordinates[:, column]
        else:
            blocks = [len(shape) + i for i, mapped in enumerate(block_map) if mapped == axis]
            full[:, axis] += coordinates[:, column] * (block_size[blocks[0]] if blocks else 1)
    dense = np.zeros(shape, values.dtype)
    dense[tuple(full.T)] = values
    return dense


def read_graph(path: Path) -> Graph:
    """Read the first subgraph of a .tflite file with all of its constants."""
    buffer = path.read_bytes()
    if buffer[4:8] != b"TFL3":
        raise ValueError(f"{path} is no .tflite file: its identifier is {buffer[4:8]!r} and not b'TFL3'")
    model = Table(buffer, struct.unpack_from("<I", buffer)[0])
    codes = []
    for code in model.tables(1):
        number = max(code.scalar(0, "b"), code.scalar(3))
        codes.append(code.text(1) if number == 32 else OPERATORS.get(number, f"BUILTIN_{number}"))
    buffers = model.tables(4)
    subgraph = model.tables(2)[0]
    tensors = []
    for tensor in subgraph.tables(0):
        shape = tuple(int(v) for v in tensor.array(0))
        dtype = DTYPES[tensor.scalar(1, "b")]
        data = buffers[tensor.scalar(2, "I")].array(0, np.uint8)
        sparsity = tensor.table(6)
        values: np.ndarray | None = None
        if data.size:
            flat = data.view(dtype)
            values = _densify(flat, shape, sparsity) if sparsity is not None else flat.reshape(shape)
        tensors.append(GraphTensor(tensor.text(3), shape, values))
    operators = [
        GraphOperator(
            codes[op.scalar(0, "I")],
            tuple(int(v) for v in op.array(1)),
            tuple(int(v) for v in op.array(2)),
            op.table(4),
            op.array(5, np.uint8).tobytes(),
        )
        for op in subgraph.tables(3)
    ]
    return Graph(
        tuple(tensors),
        tuple(operators),
        tuple(int(v) for v in subgraph.array(1)),
        tuple(int(v) for v in subgraph.array(2)),
    )
