"""Products of rows of 8-bit whole numbers with users, by ONNX Runtime, which has processor instructions for them that
NumPy lacks.

Two of its operations do it. `MatMulInteger` is the faster one while the rows fit into the processor's cache, and reads
them from memory at a quarter of its speed; `MatMulNBits` reads them at two thirds. docs/log.md has the times.
"""

import mmap
import sys
import time
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import onnxruntime as ort

from lsvcr.serving.encoder import session_options
from lsvcr.serving.onnx_bytes import FLOAT, INT8, INT32, UINT8, Given, Rows, one_node

_STEPS = 63
"""Steps from 0 to the largest number of a user's vector: 7 bits with the sign. With 8, sums of two products exceed
the 16 bits that processors without VNNI instructions keep them in."""
_ZERO = 64
"""What stands for 0 in the user's numbers, which `MatMulInteger` wants without a sign."""
_BLOCK = 64
"""Numbers of a vector that `MatMulNBits` gives one scale."""
_BLOCK_STEPS = 127
"""Steps from 0 to the largest number of a block of a user's vector, as `MatMulNBits` rounds it."""
_BLOCK_ZERO = 128
"""What stands for 0 in the rows of `MatMulNBits`."""
_IN_CACHE = 1 << 24
"""Bytes of rows from which on they are read from memory."""
_TINY = 1e-30
_TRIED = 1 << 12
"""Rows with which a kind of product is tried."""


class Rounded(NamedTuple):
    """Users as a product takes them."""

    numbers: np.ndarray
    """(B, d), for the product."""
    vectors: np.ndarray
    """(B, d) float32, what the numbers stand for."""
    unit: np.ndarray
    """(B,) float32: the product times this is that of `vectors` with the rows."""


class Product(Protocol):
    """Products with fixed rows."""

    @staticmethod
    def rounded(users: np.ndarray) -> Rounded:
        """Users (B, d) float32 in whole numbers."""
        ...

    def __call__(self, numbers: np.ndarray, out: np.ndarray) -> None:
        """Fill `out` (B, n) float32 with the products of `Rounded.numbers` and all rows."""
        ...


class WholeNumberProduct:
    """`MatMulInteger`: products of whole numbers without a fault.

    Args:
        rows: (n, d) int8.
        scale: (n,) float32 of each row; kept.
        threads: of one product.
    """

    def __init__(self, rows: np.ndarray, scale: np.ndarray, threads: int = 1) -> None:
        self._scale = scale
        columns = _memory(rows.shape[::-1], np.int8)
        graph = one_node(
            "MatMulInteger",
            Rows("users", UINT8, rows.shape[1]),
            (Given("columns", INT8, columns.shape), (Given("zero", UINT8, ()), bytes([_ZERO]))),
            Rows("product", INT32, len(rows)),
        )

        def fill() -> None:
            np.copyto(columns, rows.T)

        users = (np.arange(2 * rows.shape[1]) * 37 % 128).astype(np.uint8).reshape(2, -1)
        self._product = _Session(graph, {"columns": columns}, fill, users, np.int32, len(rows), threads)

    @staticmethod
    def rounded(users: np.ndarray) -> Rounded:
        """See `Product`."""
        unit = np.maximum(np.abs(users).max(axis=1, initial=0), _TINY) / _STEPS
        steps = np.rint(users / unit[:, None])
        return Rounded((steps + _ZERO).astype(np.uint8), steps * unit[:, None], unit)

    def __call__(self, numbers: np.ndarray, out: np.ndarray) -> None:
        """See `Product`."""
        product = np.empty(out.shape, dtype=np.int32)
        self._product(numbers, product)
        np.multiply(product, self._scale, out=out, dtype=np.float32, casting="unsafe")


class BlockProduct:
    """`MatMulNBits`: rows and users in blocks of whole numbers with a scale each.

    Args:
        rows: (n, d) int8, not -128.
        scale: (n,) float32 of each row.
        threads: of one product.
    """

    def __init__(self, rows: np.ndarray, scale: np.ndarray, threads: int = 1) -> None:
        n, d = rows.shape
        blocks = -(-d // _BLOCK)
        packed, scales = _memory((n, blocks * _BLOCK), np.uint8), _memory((n, blocks), np.float32)
        graph = one_node(
            "MatMulNBits",
            Rows("users", FLOAT, d),
            (Given("rows", UINT8, (n, blocks, _BLOCK)), Given("scales", FLOAT, (n * blocks,))),
            Rows("scores", FLOAT, n),
            "com.microsoft",
            {"K": d, "N": n, "bits": 8, "block_size": _BLOCK, "accuracy_level": 4},
        )

        def fill() -> None:
            np.bitwise_xor(rows.view(np.uint8), _BLOCK_ZERO, out=packed[:, :d])
            packed[:, d:] = _BLOCK_ZERO
            scales[:] = scale[:, None]

        given = {"rows": packed.reshape(n, blocks, _BLOCK), "scales": scales.reshape(-1)}
        users = self.rounded(np.sin(np.arange(2 * d, dtype=np.float32)).reshape(2, d)).numbers
        self._product = _Session(graph, given, fill, users, np.float32, n, threads)

    @staticmethod
    def rounded(users: np.ndarray) -> Rounded:
        """See `Product`. Numbers rounded here are not rounded again by the operation itself."""
        vectors = np.empty_like(users)
        for start in range(0, users.shape[1], _BLOCK):
            part = users[:, start : start + _BLOCK]
            step = np.maximum(np.abs(part).max(axis=1, initial=0), _TINY) / _BLOCK_STEPS
            vectors[:, start : start + _BLOCK] = np.rint(part / step[:, None]) * step[:, None]
        return Rounded(vectors, vectors, np.ones(len(users), dtype=np.float32))

    def __call__(self, numbers: np.ndarray, out: np.ndarray) -> None:
        """See `Product`."""
        product = out if out.flags.c_contiguous else np.empty(out.shape, dtype=np.float32)
        self._product(numbers, product)
        if product is not out:
            np.copyto(out, product)


def product_for(n: int, d: int) -> type[WholeNumberProduct] | type[BlockProduct]:
    """The product that suits n rows of d numbers on this machine."""
    return BlockProduct if n * d >= _IN_CACHE and _blocks_work(d) else WholeNumberProduct


@cache
def _blocks_work(d: int) -> bool:
    """Has this ONNX Runtime on this processor a `MatMulNBits` of 8 bits that is right, and fast?

    Older ones have none, and without instructions for it, it goes through float32, at a fiftieth of the speed.
    """
    sample = np.random.default_rng(0)
    rows = sample.integers(-127, 128, (_TRIED, d), dtype=np.int8)
    rows[:512] = np.sign(rows[:512]) * 127  # the largest sums that there can be
    scale = np.linspace(0.5, 2.0, len(rows), dtype=np.float32)
    users = np.vstack([np.sign(rows[:1]), sample.standard_normal((1, d))]).astype(np.float32)
    try:
        blocks = BlockProduct(rows, scale)
    except Exception:  # what ONNX Runtime raises for a graph that it cannot read
        return False
    rounded = blocks.rounded(users)
    found = np.empty((2, len(rows)), dtype=np.float32)
    blocks(rounded.numbers, found)
    expected = rounded.vectors.astype(np.float64) @ rows.T * scale
    if np.abs(found - expected).max() > 1e-5 * np.abs(expected).max():
        return False
    whole = WholeNumberProduct(rows, scale)
    return _seconds(blocks, users[1:]) < 10 * _seconds(whole, users[1:])


def _seconds(product: Product, users: np.ndarray) -> float:
    """The shortest time of a few products of users (B, d) float32 with the rows that are tried."""
    numbers, out = product.rounded(users).numbers, np.empty((len(users), _TRIED), dtype=np.float32)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        product(numbers, out)
        times.append(time.perf_counter() - began)
    return min(times)


class _Session:
    """ONNX Runtime with one of these products.

    Args:
        graph: from (B, d) users to (B, n) `kind`.
        given: its tensors, in memory of `_memory`.
        fill: writes the numbers into them.
        users: (2, d), to see whether ONNX Runtime reads the tensors when it has them in an order of its own.
        kind, n: type and width of what comes out.
        threads: of one run.
    """

    def __init__(
        self,
        graph: bytes,
        given: dict[str, np.ndarray],
        fill: Callable[[], None],
        users: np.ndarray,
        kind: type,
        n: int,
        threads: int,
    ) -> None:
        fill()
        self._given = [ort.OrtValue.ortvalue_from_numpy(array) for array in given.values()]
        options = session_options(threads)
        options.add_external_initializers(list(given), self._given)
        self._session: Any = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self._source, self._target = (
            kinds()[0].name for kinds in (self._session.get_inputs, self._session.get_outputs)
        )
        if sys.platform == "linux":
            self._let_go(given, fill, lambda: [self._new(users[:count], n, kind) for count in (1, 2)])

    def __call__(self, users: np.ndarray, out: np.ndarray) -> None:
        """Fill `out`."""
        # Without a binding ONNX Runtime makes the product in memory of its own, which it keeps, and copies it.
        binding = self._session.io_binding()
        binding.bind_cpu_input(self._source, np.ascontiguousarray(users))
        binding.bind_output(self._target, "cpu", 0, out.dtype.type, out.shape, out.ctypes.data)
        self._session.run_with_iobinding(binding)

    def _new(self, users: np.ndarray, n: int, kind: type) -> np.ndarray:
        out: np.ndarray = np.empty((len(users), n), dtype=kind)
        self(users, out)
        return out

    @staticmethod
    def _let_go(
        given: dict[str, np.ndarray], fill: Callable[[], None], products: Callable[[], list[np.ndarray]]
    ) -> None:
        """Give the memory of the tensors back where ONNX Runtime has an order of its own and reads that alone."""
        before = products()
        for array in given.values():
            _mapped(array).madvise(mmap.MADV_DONTNEED)  # all zeros now
        if not all(map(np.array_equal, products(), before)):
            fill()


def _memory(shape: tuple[int, ...], kind: type) -> np.ndarray:
    """An array in memory of its own, which can be given back."""
    size = max(1, int(np.prod(shape)) * np.dtype(kind).itemsize)
    if sys.platform == "linux":
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    else:
        memory = mmap.mmap(-1, size)
    return np.frombuffer(memory, dtype=kind, count=int(np.prod(shape))).reshape(shape)


def _mapped(array: np.ndarray) -> mmap.mmap:
    """The memory under an array of `_memory`."""
    base: Any = array
    while not isinstance(base, mmap.mmap):
        base = base.obj if isinstance(base, memoryview) else base.base
    return base
