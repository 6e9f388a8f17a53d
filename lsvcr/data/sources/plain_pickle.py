"""Pickled lists of strings and numbers, read without running anything that a pickle may ask for.

A pickle is a program, and one from a stranger may run any command. Here its opcodes are followed one by one; those
that build lists, tuples, strings, numbers, booleans and None are known, and every other one is refused.
"""

import pickletools
import struct
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from lsvcr.utils.errors import UserError

_VALUES = frozenset(
    "UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 "
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT".split()
)
"""Opcodes that put their argument on the stack."""

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUTS = frozenset(("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"))
_GETS = frozenset(("GET", "BINGET", "LONG_BINGET"))
_FRAMING = frozenset(("PROTO", "FRAME", "STOP"))

_BATCH = 1000
"""Strings of one APPENDS, as the standard library writes them."""


def read_plain(path: str | Path) -> Any:
    """The object in a pickle of protocol 0 to 5: lists, tuples, str, int, float, bool and None.

    Raises:
        UserError: the file is missing, cut short, no pickle, or asks for anything else than plain data.
    """
    try:
        # All of it in memory: a string's length is a promise of the file, and only memory holds it to that.
        data = Path(path).read_bytes()
    except OSError as broken:
        raise UserError(f"{path} cannot be read: {broken.strerror}") from None
    machine = _Machine()
    try:
        for opcode, argument, position in pickletools.genops(data):
            if not machine.step(opcode.name, argument):
                raise UserError(
                    f"{path}, byte {position}: the pickle asks for {opcode.name}, which may run code and is not "
                    "obeyed; write the file again as a plain list of strings or whole numbers"
                )
        return machine.stack.pop()
    except (ValueError, IndexError, KeyError, AttributeError) as broken:
        raise UserError(f"{path} is damaged or no pickle ({broken}); make it again") from None


def write_strings(path: str | Path, strings: Iterable[str]) -> None:
    """Write a list of strings as a pickle of protocol 2, which every Python 3 reads."""
    rest = iter(strings)
    with open(path, "wb") as stream:
        stream.write(b"\x80\x02]")  # PROTO 2, EMPTY_LIST
        while batch := list(islice(rest, _BATCH)):
            texts = [text.encode("utf-8") for text in batch]
            items = b"".join(b"X" + struct.pack("<I", len(text)) + text for text in texts)  # BINUNICODE
            stream.write(b"(" + items + b"e")  # MARK ... APPENDS
        stream.write(b".")  # STOP


class _Machine:
    """The stack, marks and memo of a pickle that is being read."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._below: list[list[Any]] = []
        """The stacks under each open MARK."""
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> bool:
        """Obey one opcode; False if it is not one of plain data.

        Raises:
            IndexError, KeyError, AttributeError: the stack or memo does not hold what the opcode needs.
        """
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _PUTS:
            self._memo[len(self._memo) if argument is None else argument] = self.stack[-1]
        elif name in _GETS:
            self.stack.append(self._memo[argument])
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            self.stack.append(tuple(reversed([self.stack.pop() for _ in range(_TUPLES[name])])))
        elif name == "MARK":
            self._below.append(self.stack)
            self.stack = []
        elif name == "EMPTY_LIST":
            self.stack.append([])
        elif name == "APPEND":
            item = self.stack.pop()
            self.stack[-1].append(item)
        elif name in ("APPENDS", "LIST", "TUPLE"):
            items, self.stack = self.stack, self._below.pop()
            if name == "APPENDS":
                self.stack[-1].extend(items)
            else:
                self.stack.append(items if name == "LIST" else tuple(items))
        else:
            return name in _FRAMING
        return True
