"""A graph of one node as the bytes that the ONNX format defines (field numbers of onnx.proto), because a machine that
serves has ONNX Runtime and not the package `onnx`.
"""

from typing import NamedTuple

FLOAT, UINT8, INT8, INT32 = 1, 2, 3, 6
"""TensorProto.DataType."""
_EXTERNAL = 1
"""TensorProto.DataLocation: the numbers come from elsewhere."""
_INT_ATTRIBUTE = 2
"""AttributeProto.AttributeType."""
_IR_VERSION, _OPSET = 7, 13
"""Old enough for every ONNX Runtime in use."""


class Given(NamedTuple):
    """A tensor whose numbers are given to the session beside the graph, of whose bytes ONNX Runtime keeps a copy."""

    name: str
    kind: int
    shape: tuple[int, ...]


class Rows(NamedTuple):
    """An input or output of (B, width)."""

    name: str
    kind: int
    width: int


def one_node(
    op: str,
    source: Rows,
    tensors: tuple[Given | tuple[Given, bytes], ...],
    target: Rows,
    domain: str = "",
    attributes: dict[str, int] | None = None,
) -> bytes:
    """ModelProto: `target = op(source, *tensors)`; a tensor with bytes has its numbers in the graph."""
    plain = [tensor if isinstance(tensor, Given) else tensor[0] for tensor in tensors]
    node = b"".join(_field(1, name.encode()) for name in (source.name, *(tensor.name for tensor in plain)))
    node += _field(2, target.name.encode()) + _field(4, op.encode())
    node += b"".join(_field(5, _attribute(name, value)) for name, value in (attributes or {}).items())
    node += _field(7, domain.encode())
    graph = _field(1, node) + _field(2, op.encode())
    graph += b"".join(_field(5, _tensor(tensor)) for tensor in tensors)
    graph += _field(11, _value(source)) + _field(12, _value(target))
    opset = _field(1, domain.encode()) + _field(2, 1 if domain else _OPSET)
    return _field(1, _IR_VERSION) + _field(7, graph) + _field(8, opset)


def _attribute(name: str, value: int) -> bytes:
    """AttributeProto of a whole number."""
    return _field(1, name.encode()) + _field(3, value) + _field(20, _INT_ATTRIBUTE)


def _tensor(tensor: Given | tuple[Given, bytes]) -> bytes:
    """TensorProto."""
    given, numbers = (tensor, None) if isinstance(tensor, Given) else tensor
    head = (
        b"".join(_field(1, size) for size in given.shape)
        + _field(2, given.kind)
        + _field(8, given.name.encode())
    )
    if numbers is not None:
        return head + _field(9, numbers)
    return head + _field(13, _field(1, b"location") + _field(2, b"given")) + _field(14, _EXTERNAL)


def _value(rows: Rows) -> bytes:
    """ValueInfoProto."""
    shape = _field(1, _field(2, b"B")) + _field(1, _field(1, rows.width))
    return _field(1, rows.name.encode()) + _field(2, _field(1, _field(1, rows.kind) + _field(2, shape)))


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
