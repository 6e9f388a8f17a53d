"""Writing ONNX graphs operation by operation.

A tracing exporter gives the user encoder 310 nodes, many of which move data about, and lets ONNX Runtime join residual
sums and norms into an operation that is slower than its parts. Written out, the same encoder has 120 and takes less
than half the time (docs/method.md), is made in milliseconds, and its bytes are the same at every export.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from lsvcr.nn.similarity import NORM_EPS

OPSET = 20
"""The first with Gelu; ONNX Runtime 1.19, the oldest that is supported, knows 21."""
IR_VERSION = 9

_TYPES = {"float32": TensorProto.FLOAT, "bool": TensorProto.BOOL}


class Graph:
    """A graph in the making. Values are known by their names, which operations and constants return.

    Args:
        name: of the graph.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[bytes, tuple[int, ...], str], onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, kind: str, shape: Sequence[str | int]) -> str:
        """Declare an input of dtype `float32` or `bool`; a letter in its shape is an axis of any length."""
        self._inputs.append(helper.make_tensor_value_info(name, _TYPES[kind], shape))
        return name

    def output(self, value: str, name: str, shape: Sequence[str | int]) -> None:
        """Make `value`, float32, an output called `name`."""
        self._nodes.append(helper.make_node("Identity", [value], [name]))
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def constant(self, value: np.ndarray) -> str:
        """An array that is part of the graph; equal ones are stored once."""
        array = np.ascontiguousarray(value)
        key = (array.tobytes(), array.shape, array.dtype.str)
        if key not in self._constants:
            self._constants[key] = numpy_helper.from_array(array, f"c{len(self._constants)}")
        return str(self._constants[key].name)

    def op(self, kind: str, *inputs: str | np.ndarray, **attributes: Any) -> str:
        """Add an operation of the ONNX standard with one output.

        Args:
            kind: such as `MatMul`.
            inputs: values, or arrays that become constants.
            attributes: of the operation.
        """
        return self.split(kind, 1, *inputs, **attributes)[0]

    def split(self, kind: str, outputs: int, *inputs: str | np.ndarray, **attributes: Any) -> list[str]:
        """As `op`, for an operation with several outputs."""
        names = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        made = [f"v{len(self._nodes)}_{place}" for place in range(outputs)]
        self._nodes.append(helper.make_node(kind, names, made, **attributes))
        return made

    def linear(self, value: str, weight: np.ndarray, bias: np.ndarray) -> str:
        """(N, in) times the transpose of `weight` (out, in), plus `bias` (out,)."""
        return self.op("Gemm", value, weight.T, bias)

    def integers(self, mask: str) -> str:
        """A mask as whole numbers: True is 1."""
        return self.op("Cast", mask, to=TensorProto.INT32)

    def unit(self, value: str) -> str:
        """(N, d) with every row at length 1, as `lsvcr.nn.similarity.unit` has it."""
        length = self.op("ReduceL2", value, np.array([1]), keepdims=1)
        return self.op("Div", value, self.op("Max", length, np.float32(NORM_EPS)))

    def to_bytes(self) -> bytes:
        """The finished model, checked against the ONNX standard."""
        constants = list(self._constants.values())
        graph = helper.make_graph(self._nodes, self._name, self._inputs, self._outputs, constants)
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="lsvcr")
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString())


def array(parameter: Tensor) -> np.ndarray:
    """A copy of a parameter or buffer as float32."""
    return parameter.detach().float().cpu().numpy().copy()
