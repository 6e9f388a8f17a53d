"""Products of 8-bit whole numbers by ONNX Runtime, which has processor instructions for them that NumPy lacks.

The graph is one node, written here as the bytes that the ONNX format defines (field numbers of onnx.proto), because a
machine that serves has ONNX Runtime and not the package `onnx`.
"""

import mmap
import sys
from typing import Any

import numpy as np
import onnxruntime as ort

from lsvcr.serving.encoder import session_options

_UINT8, _INT8, _INT32 = 2, 3, 6
"""TensorProto.DataType."""
_EXTERNAL = 1
"""TensorProto.DataLocation: the numbers come from elsewhere."""
_IR_VERSION, _OPSET = 7, 13
"""Old enough for every ONNX Runtime in use."""


class WholeNumberProduct:
    """Products with fixed rows.

    Args:
        rows: (n, d) int8.
        zero: what stands for 0 in the users' numbers.
        threads: of one product.
    """

    def __init__(self, rows: np.ndarray, zero: int, threads: int = 1) -> None:
        self._n = len(rows)
        memory = _memory(rows.size)
        columns = np.frombuffer(memory, dtype=np.int8, count=rows.size).reshape(rows.shape[::-1])
        np.copyto(columns, rows.T)
        # Beside the graph, not in its bytes: of those ONNX Runtime keeps a copy.
        self._columns = ort.OrtValue.ortvalue_from_numpy(columns)
        options = session_options(threads)
        options.add_external_initializers(["columns"], [self._columns])
        self._session: Any = ort.InferenceSession(
            _product_graph(len(rows), rows.shape[1], zero), options, providers=["CPUExecutionProvider"]
        )
        if sys.platform == "linux":
            self._let_go(memory, columns, rows)

    def __call__(self, users: np.ndarray) -> np.ndarray:
        """(B, d) uint8 -> (users - zero) @ rows.T, (B, n) int32."""
        product = np.empty((len(users), self._n), dtype=np.int32)
        # Without a binding ONNX Runtime makes the product in memory of its own, which it keeps, and copies it.
        binding = self._session.io_binding()
        binding.bind_cpu_input("users", np.ascontiguousarray(users))
        binding.bind_output("product", "cpu", 0, np.int32, product.shape, product.ctypes.data)
        self._session.run_with_iobinding(binding)
        return product

    def _let_go(self, memory: mmap.mmap, columns: np.ndarray, rows: np.ndarray) -> None:
        """Give the columns' memory back where ONNX Runtime has put them in an order of its own and reads that alone."""
        users = (np.arange(2 * rows.shape[1]) * 37 % 128).astype(np.uint8).reshape(2, -1)
        one, some = self(users[:1]), self(users)
        memory.madvise(mmap.MADV_DONTNEED)  # all zeros now
        if not (np.array_equal(self(users[:1]), one) and np.array_equal(self(users), some)):
            np.copyto(columns, rows.T)


def _memory(size: int) -> mmap.mmap:
    """So many bytes of their own."""
    if sys.platform == "linux":
        return mmap.mmap(-1, max(1, size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return mmap.mmap(-1, max(1, size))


def _product_graph(n: int, d: int, zero: int) -> bytes:
    """ModelProto: `MatMulInteger(users, columns (d, n) int8, zero)`, the columns being given beside it."""
    node = b"".join(_field(1, name) for name in (b"users", b"columns", b"zero"))
    node += _field(2, b"product") + _field(4, b"MatMulInteger")
    graph = _field(1, node) + _field(2, b"product")
    place = _field(13, _field(1, b"location") + _field(2, b"given")) + _field(14, _EXTERNAL)
    graph += _field(5, _tensor(b"columns", _INT8, (d, n)) + place)
    graph += _field(5, _tensor(b"zero", _UINT8, ()) + _field(9, bytes([zero])))
    graph += _field(11, _value(b"users", _UINT8, d)) + _field(12, _value(b"product", _INT32, n))
    return _field(1, _IR_VERSION) + _field(7, graph) + _field(8, _field(2, _OPSET))


def _tensor(name: bytes, kind: int, shape: tuple[int, ...]) -> bytes:
    """TensorProto, without its numbers."""
    dims = b"".join(_field(1, size) for size in shape)
    return dims + _field(2, kind) + _field(8, name)


def _value(name: bytes, kind: int, width: int) -> bytes:
    """ValueInfoProto of (B, width)."""
    shape = _field(1, _field(2, b"B")) + _field(1, _field(1, width))
    return _field(1, name) + _field(2, _field(1, _field(1, kind) + _field(2, shape)))


def _field(number: int, value: int | bytes) -> bytes:
    """A protobuf field: a whole number, or bytes with their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that another follows."""
    groups = bytearray()
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    groups.append(value)
    return bytes(groups)
