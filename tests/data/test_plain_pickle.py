import os
import pickle
import pickletools
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsvcr.data.sources.plain_pickle import read_plain, write_strings
from lsvcr.utils.errors import UserError

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple),
    max_leaves=30,
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pickles") / "ids.pkl"


@settings(max_examples=150, deadline=None)
@given(content=plain, protocol=st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_objects_come_back(file: Path, content, protocol: int):
    file.write_bytes(pickle.dumps(content, protocol))
    found = read_plain(file)
    assert found == content and repr(found) == repr(content)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_the_standard_library_reads_what_is_written(file: Path, strings: list[str]):
    write_strings(file, iter(strings))
    assert pickle.loads(file.read_bytes()) == strings
    assert read_plain(file) == strings


def test_long_lists_and_shared_objects(file: Path):
    for count in (999, 1000, 1001, 2500):
        write_strings(file, map(str, range(count)))
        assert pickle.loads(file.read_bytes()) == read_plain(file) == [str(n) for n in range(count)]
    again = ["[PAD]", "a" * 300]
    for protocol in range(6):
        file.write_bytes(pickle.dumps([again, again, again[1]], protocol))
        assert read_plain(file) == [again, again, again[1]]


class Attack:
    """Runs a command when a pickle of it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("harmed",)


class Plain:
    """An object of a class."""


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("content", "opcode"),
    [
        (["[PAD]", Attack()], "GLOBAL"),
        ([Plain()], "GLOBAL|NEWOBJ"),
        (np.array([1, 2]), "GLOBAL"),
        ([np.int64(3)], "GLOBAL"),
        ({"a": 1}, "DICT"),
        ([{1, 2}], "EMPTY_SET|GLOBAL"),
        ([b"bytes"], "BINBYTES|GLOBAL|SHORT_BINBYTES"),
    ],
)
def test_anything_else_is_refused_unobeyed(
    file: Path, monkeypatch: pytest.MonkeyPatch, content, opcode: str, protocol: int
):
    monkeypatch.chdir(file.parent)
    file.write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(UserError, match=rf"ids\.pkl, byte \d+: .*\w*({opcode}).*plain list of strings"):
        read_plain(file)
    assert not (file.parent / "harmed").exists()


def test_only_harmless_opcodes_are_known(file: Path):
    """Every opcode there is, on its own: those that could call, import or build are refused by name."""
    for opcode in pickletools.opcodes:
        if {"GLOBAL", "REDUCE", "BUILD", "INST", "OBJ", "NEWOBJ", "EXT1", "PERSID", "BINPERSID"} & {
            opcode.name
        }:
            argument = {"GLOBAL": b"os\nsystem\n", "INST": b"os\nsystem\n", "PERSID": b"x\n", "EXT1": b"\x01"}
            file.write_bytes(opcode.code.encode("latin-1") + argument.get(opcode.name, b"") + b".")
            with pytest.raises(UserError, match=f"byte 0: the pickle asks for {opcode.name}"):
                read_plain(file)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40), st.integers(0, 60))
def test_damage_is_told_in_a_sentence(file: Path, noise: bytes, place: int):
    good = pickle.dumps(["[PAD]", "17", "18", (1, 2.5)], 4)
    for content in (noise, good[:place], good[:place] + noise + good[place:]):
        file.write_bytes(content)
        try:
            read_plain(file)
        except UserError as error:
            assert str(file) in str(error)


def test_no_file_no_pickle_and_a_false_length(tmp_path: Path):
    with pytest.raises(UserError, match=r"none\.pkl cannot be read: No such file"):
        read_plain(tmp_path / "none.pkl")
    (tmp_path / "a.pkl").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"a\.pkl is damaged or no pickle"):
        read_plain(tmp_path / "a.pkl")
    (tmp_path / "b.pkl").write_bytes(b"\x80\x04\x8d" + (1 << 61).to_bytes(8, "little") + b"x.")
    with pytest.raises(UserError, match=r"b\.pkl is damaged or no pickle"):
        read_plain(tmp_path / "b.pkl")


def test_a_hundred_thousand_ids_take_a_moment(file: Path):
    ids = [str(n * 7919) for n in range(100_000)]
    file.write_bytes(pickle.dumps(ids, 4))
    start = time.perf_counter()
    assert read_plain(file) == ids
    assert time.perf_counter() - start < 3
