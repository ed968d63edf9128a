"""Reads arrays from a Python pickle without executing anything that the pickle names.

A pickle is a program that can call any global. Here every global is looked up in `_STAND_INS`, whose entries are inert
holders for the types in FLAME's files (NumPy arrays, chumpy's `Ch` and `Select`, SciPy's compressed matrices); any
other name is an error. Holders keep shape, type and bytes; arrays are made from them after the program has ended.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any

import numpy as np

from mien.errors import FormatError
from mien.io.reading import MAX_EXPANSION, MAX_FILE_BYTES, Budget, file_size

MAX_PROTOCOL = 5
_MOST_INSTRUCTIONS = 200_000
_MOST_SIDES = 8
_SCALAR_TYPES = frozenset({"b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"})
_DAMAGED = (
    pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, TypeError, ValueError, KeyError,
    OverflowError, MemoryError, RecursionError, AssertionError,
)  # fmt: skip


_OBJECT_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '\|O8?', 'fortran_order': False, 'shape': \(\), ?\}[ ]*\n", re.DOTALL
)


class _Holder:
    """An object that a pickle may make: it stores arguments and state, and does nothing."""

    __slots__ = ("arguments", "state")

    def __new__(cls, *arguments: Any) -> _Holder:
        holder = super().__new__(cls)
        holder.arguments, holder.state = arguments, None
        return holder

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Array(_Holder):
    __slots__ = ()


class _Dtype(_Holder):
    __slots__ = ()


class _Scalar(_Holder):
    __slots__ = ()


class _Chumpy(_Holder):
    __slots__ = ()


class _Select(_Holder):
    """chumpy's selection of the entries `idxs` of the flattened `a`, such as fewer components of a basis."""

    __slots__ = ()


class _Sparse(_Holder):
    __slots__ = ()


class _SparseRows(_Holder):
    __slots__ = ()


class _FromBuffer(_Holder):
    """`numpy._core.numeric._frombuffer(bytes, dtype, shape, order)`: how protocol 5 writes a contiguous array."""

    __slots__ = ()


class _Object(_Holder):
    __slots__ = ()


class _Bytes(_Holder):
    """`_codecs.encode(text, "latin1")`, or `bytes()` if empty: how Python 3 writes bytes in protocol 2."""

    __slots__ = ()


class _Tensor(_Holder):
    """`torch._utils._rebuild_tensor_v2(storage, offset, size, stride, ...)`: DECA's landmark embedding has two."""

    __slots__ = ()


class _Storage(_Holder):
    """`torch.storage._load_from_bytes(content)`."""

    __slots__ = ()


class _Collection(_Holder):
    """A set or ordered dictionary: chumpy's bookkeeping or a tensor's hooks. Its content is ignored."""

    __slots__ = ()


class _Reconstructed(_Holder):
    """`copyreg._reconstructor(cls, object, None)`: how protocols 0 and 1 write an object of a plain class."""

    __slots__ = ()

    def __new__(cls, *arguments: Any) -> _Holder:  # pyright: ignore[reportInconsistentConstructor]
        made = arguments[0] if arguments else None
        if made not in (_Chumpy, _Select, _Sparse, _SparseRows):
            raise pickle.UnpicklingError("object of an unexpected class")
        return made()


_STAND_INS: dict[str, type] = {
    "numpy.ndarray": _Object,
    "numpy.dtype": _Dtype,
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy._core.multiarray._reconstruct": _Array,
    "numpy.core.multiarray.scalar": _Scalar,
    "numpy._core.multiarray.scalar": _Scalar,
    "numpy.core.numeric._frombuffer": _FromBuffer,
    "numpy._core.numeric._frombuffer": _FromBuffer,
    "chumpy.ch.Ch": _Chumpy,
    "chumpy.reordering.Select": _Select,
    **{f"scipy.sparse.{module}csc_{kind}": _Sparse for module in ("csc.", "_csc.", "") for kind in ("matrix", "array")},
    **{
        f"scipy.sparse.{module}csr_{kind}": _SparseRows
        for module in ("csr.", "_csr.", "")
        for kind in ("matrix", "array")
    },
    "copy_reg._reconstructor": _Reconstructed,
    "copyreg._reconstructor": _Reconstructed,
    "__builtin__.object": _Object,
    "builtins.object": _Object,
    "_codecs.encode": _Bytes,
    "__builtin__.bytes": _Bytes,
    "torch._utils._rebuild_tensor_v2": _Tensor,
    "torch.storage._load_from_bytes": _Storage,
    "collections.OrderedDict": _Collection,
    "__builtin__.set": _Collection,
    "builtins.set": _Collection,
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, path: Path, content: bytes) -> None:
        super().__init__(io.BytesIO(content), fix_imports=False, encoding="latin1")
        self._path = path

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Return the inert holder of a known global; FormatError for any other."""
        name = f"{module_name}.{global_name}"
        if name not in _STAND_INS:
            raise FormatError(
                f"{self._path}: refused, because it calls {name!r}; expected arrays only "
                f"({', '.join(sorted(_STAND_INS))})"
            )
        return _STAND_INS[name]


def read_pickled_arrays(path: Path) -> dict[str, Any]:
    """Read a pickled dictionary of arrays, numbers and texts; FormatError for any other pickle."""
    file_size(path)
    content = _load(path, path.read_bytes())
    if not isinstance(content, dict):
        raise FormatError(f"{path}: holds a {type(content).__name__}; expected a dictionary of arrays")
    return _all_unwrapped(content, path)


def read_pickled_npy(path: Path) -> dict[str, Any]:
    """Read a dictionary that `numpy.save` stored as an object array; otherwise like `read_pickled_arrays`."""
    file_size(path)
    content = path.read_bytes()
    found = _OBJECT_HEADER.match(content)
    if found is None:
        raise FormatError(f"{path}: begins with {content[:64]!r}; expected an .npy that holds one pickled dictionary")
    holder = _load(path, content[found.end() :])
    content = holder
    if isinstance(holder, _Array):
        state = holder.state
        rows = state[4] if isinstance(state, tuple) and len(state) == 5 else None
        content = rows[0] if isinstance(rows, list) and len(rows) == 1 else None
    if not isinstance(content, dict):
        raise FormatError(f"{path}: does not hold a dictionary; expected a landmark embedding of FLAME's tools")
    return _all_unwrapped(content, path)


def _load(path: Path, content: bytes) -> Any:
    _check_program(path, content)
    try:
        return _Unpickler(path, content).load()
    except _DAMAGED as error:
        raise FormatError(f"{path}: not a readable pickle ({error}); expected a dictionary of arrays") from error


def _check_program(path: Path, content: bytes) -> None:
    """Check number and protocol of all instructions before the first is executed."""
    count, place = 0, 0
    try:
        for instruction, argument, position in pickletools.genops(content):
            count, place = count + 1, position or 0
            if instruction.proto > MAX_PROTOCOL:
                raise FormatError(
                    f"{path}: pickle protocol above {MAX_PROTOCOL} at byte {place}; save it with an older one"
                )
            if instruction.name in ("PUT", "LONG_BINPUT") and int(argument or 0) > len(content):
                # The unpickler's table of memos grows to the largest index.
                raise FormatError(f"{path}: memo {argument} at byte {place}; expected at most one per byte")
            if count > _MOST_INSTRUCTIONS:
                raise FormatError(f"{path}: more than {_MOST_INSTRUCTIONS} instructions; expected arrays")
    except (*_DAMAGED, UnicodeError) as error:
        raise FormatError(f"{path}: damaged after byte {place} ({error}); expected a complete pickle") from error


def _all_unwrapped(content: dict[Any, Any], path: Path) -> dict[str, Any]:
    budget = Budget(path)
    try:
        return {str(key): _unwrapped(value, str(key), budget) for key, value in content.items()}
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        # A pickle may put objects in place of a name, type or shape that are too long or too deep to print.
        raise FormatError(f"{path}: an array's name, type or shape is not valid ({error}); expected arrays") from error


def _is_shape(shape: Any) -> bool:
    """Whether it is a tuple of few, bounded sides, so that their product is cheap to compute."""
    return (
        isinstance(shape, tuple)
        and len(shape) <= _MOST_SIDES
        and all(isinstance(side, int) and 0 <= side <= MAX_FILE_BYTES for side in shape)
    )


def _unwrapped(value: Any, key: str, budget: Budget) -> Any:
    """Convert holders to arrays; objects other than arrays, numbers and texts (notes in FLAME's files) become None."""
    if isinstance(value, _Select):
        return _selected(value, key, budget)
    if isinstance(value, _Chumpy):
        state = value.state
        value = state.get("x") if isinstance(state, dict) else None
        if not isinstance(value, (_Array, _FromBuffer)):
            raise FormatError(f"{budget.path}: {key} is a chumpy object without its array 'x'")
    if isinstance(value, (_Array, _FromBuffer)):
        return _array(value, key, budget)
    if isinstance(value, (_Sparse, _SparseRows)):
        return _dense(value, key, budget)
    if isinstance(value, _Tensor):
        return _tensor(value, key, budget.path)
    return value if isinstance(value, (int, float, str)) else None


def _selected(holder: _Select, key: str, budget: Budget) -> np.ndarray:
    """The entries that chumpy's `Select` takes from another chumpy object."""
    path, state = budget.path, holder.state if isinstance(holder.state, dict) else {}
    whole, places = state.get("a"), state.get("idxs")
    shape = state.get("preferred_shape")
    if not isinstance(whole, _Chumpy) or not isinstance(places, (_Array, _FromBuffer)):
        raise FormatError(f"{path}: {key} is a chumpy selection without its parts; expected 'a' and 'idxs'")
    values, chosen = _unwrapped(whole, key, budget).reshape(-1), _array(places, key, budget).reshape(-1)
    if chosen.dtype.kind not in "iu" or (chosen.size and not 0 <= int(chosen.min()) <= int(chosen.max()) < len(values)):
        raise FormatError(f"{path}: {key} selects outside its {len(values)} values")
    shape = (len(chosen),) if shape is None else shape
    if not _is_shape(shape) or math.prod(shape) != len(chosen):
        raise FormatError(f"{path}: {key} selects {len(chosen)} values for the shape {shape}")
    budget.take(len(chosen) * values.dtype.itemsize, key)
    return values[chosen].reshape(shape)


def _array(holder: _Array | _FromBuffer, key: str, budget: Budget) -> np.ndarray:
    path = budget.path
    if isinstance(holder, _FromBuffer):
        if len(holder.arguments) != 4 or holder.arguments[3] not in ("C", "F"):
            raise FormatError(f"{path}: {key} is an array without its bytes, type, shape and order")
        data, dtype_holder, shape, order = holder.arguments
        fortran = order == "F"
    else:
        state = holder.state
        if not (isinstance(state, tuple) and len(state) == 5):
            raise FormatError(f"{path}: {key} is an array without its five parts of state")
        _, shape, dtype_holder, fortran, data = state
    dtype = _dtype(dtype_holder, key, path)
    content = _as_bytes(data, key, path)
    if not _is_shape(shape) or math.prod(shape) * dtype.itemsize != len(content):
        raise FormatError(f"{path}: {key} is {shape} of {dtype}, but has {len(content)} bytes")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _dtype(holder: Any, key: str, path: Path) -> np.dtype:
    arguments = holder.arguments if isinstance(holder, _Dtype) else ()
    code = arguments[0] if arguments else None
    if not isinstance(code, str) or code not in _SCALAR_TYPES:
        raise FormatError(
            f"{path}: {key} has element type {code!r}; expected one of {', '.join(sorted(_SCALAR_TYPES))}"
        )
    state = holder.state
    order = state[1] if isinstance(state, tuple) and len(state) > 1 else "<"
    if order not in ("<", ">", "|", "="):
        raise FormatError(f"{path}: {key} has byte order {order!r}; expected '<' or '>'")
    return np.dtype(order + code)


def _as_bytes(data: Any, key: str, path: Path) -> bytes | bytearray:
    if isinstance(data, _Bytes):
        data = data.arguments[0] if data.arguments else b""
    if isinstance(data, str):  # a string of Python 2
        try:
            return data.encode("latin1")
        except UnicodeEncodeError as error:
            raise FormatError(f"{path}: {key} holds text where bytes belong") from error
    if not isinstance(data, (bytes, bytearray)):
        raise FormatError(f"{path}: {key} holds a {type(data).__name__}; expected the array's bytes")
    return data


def _dense(holder: _Sparse | _SparseRows, key: str, budget: Budget) -> np.ndarray:
    """Expand a sparse matrix that is compressed by columns or by rows."""
    path, state = budget.path, holder.state
    if not isinstance(state, dict):
        raise FormatError(f"{path}: {key} is a sparse matrix without its state")
    shape: Any = state.get("_shape", state.get("shape"))
    parts = {name: state.get(name) for name in ("data", "indices", "indptr")}
    if not all(isinstance(part, (_Array, _FromBuffer)) for part in parts.values()) or not _is_size(shape):
        raise FormatError(f"{path}: {key} is not a compressed sparse matrix; expected data, indices, indptr and shape")
    values, rows, starts = (
        _array(part, key, budget) for part in parts.values() if isinstance(part, (_Array, _FromBuffer))
    )
    by_rows = isinstance(holder, _SparseRows)
    height, width = reversed(shape) if by_rows else shape
    lengths = np.diff(starts.astype(np.int64)) if starts.ndim == 1 and starts.dtype.kind in "iu" else np.array([-1])
    consistent = (
        len(lengths) == width
        and (lengths >= 0).all()
        and starts[0] == 0
        and values.shape == rows.shape == (int(starts[-1]),)
        and rows.dtype.kind in "iu"
        and (rows.size == 0 or 0 <= int(rows.min()) <= int(rows.max()) < height)
    )
    if not consistent:
        raise FormatError(f"{path}: {key} is a sparse matrix whose indices do not fit its shape {shape}")
    # Sparse matrices expand far more than the budget's factor; a joint regressor still fits the budget's slack.
    budget.take(height * width * 4 // MAX_EXPANSION, key)
    dense = np.zeros((height, width), np.float32)
    np.add.at(dense, (rows, np.repeat(np.arange(width), lengths)), values)
    return dense.T if by_rows else dense


def _is_size(shape: Any) -> bool:
    return isinstance(shape, tuple) and len(shape) == 2 and all(isinstance(n, int) and 0 < n < 1 << 24 for n in shape)


_LEGACY_PICKLES = 5
"""torch's older file format: magic number, protocol, system, object, storages; then each storage's length and bytes."""
_STORAGES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "LongStorage": "<i8", "IntStorage": "<i4"}


def _tensor(holder: _Tensor, key: str, path: Path) -> np.ndarray:
    """Convert a contiguous tensor that has its own storage."""
    arguments = holder.arguments
    storage = arguments[0] if len(arguments) >= 4 else None
    content = storage.arguments[0] if isinstance(storage, _Storage) and storage.arguments else None
    values = _storage(_as_bytes(content, key, path), key, path)
    offset, shape = (arguments[1], arguments[2]) if len(arguments) >= 4 else (0, ())
    if not _is_shape(shape) or offset != 0 or math.prod(shape) != len(values):
        raise FormatError(f"{path}: {key} is a tensor of shape {shape} over {len(values)} values; expected all of them")
    strides = tuple(math.prod(shape[k + 1 :]) for k in range(len(shape)))
    if arguments[3] != strides:
        raise FormatError(f"{path}: {key} is a tensor with strides {arguments[3]}; expected {strides}")
    return values.reshape(shape)


def _storage(content: bytes | bytearray, key: str, path: Path) -> np.ndarray:
    stream, kind = io.BytesIO(content), None
    try:
        for _ in range(_LEGACY_PICKLES):
            for instruction, argument, _ in pickletools.genops(stream):
                if instruction.name == "GLOBAL" and str(argument).removeprefix("torch ") in _STORAGES:
                    kind = _STORAGES[str(argument).removeprefix("torch ")]
    except (*_DAMAGED, UnicodeError) as error:
        raise FormatError(f"{path}: {key} is not a tensor saved by torch ({error})") from error
    body = stream.read()
    count = int.from_bytes(body[:8], "little")
    if kind is None or len(body) - 8 != count * np.dtype(kind).itemsize:
        raise FormatError(f"{path}: {key} is a tensor of {kind or 'an unknown type'}, but has {len(body)} bytes")
    return np.frombuffer(body, kind, offset=8)
