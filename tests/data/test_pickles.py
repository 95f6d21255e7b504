"""Pickles from elsewhere: data come out, and nothing in them runs."""

import base64
import builtins
import collections
import os
import pickle
import pickletools
import struct
import tracemalloc
import zlib

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nullrec_lib.data import pickles

FRAME = pd.DataFrame({"seq": [[1, 2], [3, 4], [5, 6]], "len_seq": [2, 2, 1], "next": [1, 2, 3],
                      "score": [0.5, 1.0, -1.0]})
PROTOCOLS = range(2, pickle.HIGHEST_PROTOCOL + 1)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some.pickle"


def columns(frame) -> dict:
    return {name: list(frame[name]) for name in frame}


# ---- what is read


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("frame", [
    pytest.param(FRAME, id="plain"),
    pytest.param(FRAME.iloc[[2, 0]], id="rows chosen"),
    pytest.param(FRAME[["next", "seq"]], id="columns chosen"),
    pytest.param(FRAME.drop(columns=["len_seq"]).assign(more=1), id="columns moved"),
    pytest.param(FRAME.set_index("next"), id="an index"),
    pytest.param(FRAME.set_axis([0, 1, 2, 3], axis=1), id="numbers for names"),
    pytest.param(FRAME.set_axis(FRAME.columns.astype(object), axis=1), id="object names"),
    pytest.param(FRAME.set_axis(pd.Index(FRAME.columns, dtype=pd.StringDtype("python")), axis=1), id="python names"),
    pytest.param(FRAME.assign(title=["Café", "", "x"]), id="a text column"),
    pytest.param(FRAME.assign(seq=[np.arange(2), np.arange(3), None]), id="arrays in cells"),
    pytest.param(FRAME.iloc[:0], id="no row"),
])
def test_frames(path, frame, protocol):
    path.write_bytes(pickle.dumps(frame, protocol))
    got = pickles.read(path)
    want = columns(frame)
    assert list(got) == list(want)
    for name in want:
        for mine, theirs in zip(got[name], want[name], strict=True):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("array", [
    np.arange(6, dtype=np.float32).reshape(2, 3), np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(3, dtype=">i4"), np.array(["ab", "c"]), np.array(["ab", None, [1]], dtype=object), np.zeros((0, 4)),
    np.array(3.0), np.array([True, False]), np.arange(8)[::2], np.array([b"ab"]), np.array([1 + 2j]),
], ids=lambda array: f"{array.dtype}{array.shape}")
def test_arrays(path, array, protocol):
    path.write_bytes(pickle.dumps(array, protocol))
    got = pickles.read(path)
    assert type(got) is np.ndarray and got.shape == array.shape
    assert got.dtype.newbyteorder("=") == array.dtype.newbyteorder("=")
    assert got.tolist() == array.tolist()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("value", [
    [1, "a", None, 2.5, b"x", True], {"a": [1], 2: (3, 4)}, {1, 2}, frozenset({1}), slice(1, 2),
    collections.OrderedDict(a=1), [np.float32(1.5), np.int64(7)], bytearray(b"ab"),
], ids=repr)
def test_plain_values(path, value, protocol):
    path.write_bytes(pickle.dumps(value, protocol))
    assert pickles.read(path) == value


def test_a_series(path):
    path.write_bytes(pickle.dumps(FRAME["seq"]))
    assert pickles.read(path).tolist() == FRAME["seq"].tolist()


# Written by pandas 1.5.3 with numpy 1.24: rows 2 and 0 of seq, len_seq and next by protocol 4, and all by protocol 2.
PANDAS_1 = {
    4: ("eNptUt9r1EAQzuUurb+wHqIWCuKDD+dLfJEiUqh4IrTBE3w/lk0yvYRu9uLuhvbAgj549mDfOv69Oru54FW7CZvZzcx838w33wa/hv3ALz"
     "usucy5jrO5gvhE8QrQ3n7PDf/g7St88R0vcGQHrJoptE833UtpQEkudFxxyWegNNp778Q8O/3YnincPl5HMFGm+m8I2h3WyLrMTgWw1MU4"
     "50eyqepFm71qhCm5UnxBWZmCbC61UU1mnGPkHdFuU27vcoVJ8APHvRR/4mccJT16wiUWOzbKzaJ2ldjw02tcXbb/+7b3FSeTyfFvWn5LDg"
     "2mqymO6E2iZAumPk0IQPf2VtqUxEcS8UiLMgOP6GBcviR0e3G3uF8MHY/iYcci9Cx2bVhewz74Bztw2ONnvVaVIFx/1yoF3T2SW/Gc0vY3"
     "cZdIVO3udWlyOAcdp1yToHeYhDN25O6IdvHGRp3tpc1Jbvyfep8Oe64htq/hC/VagGTeGkg4N+j7MpBuTCbN0tV/YPduIkFagSoz4nEkzf"
     "6rDezi7Q0do8PL1fhB14Ngs/bjFgncRjNJytK4Ov7d6LIKDPcFTUkpbgwN5QXaLXYi+MybT7gQ8zPN8qYmHbkBJngKNJGXuknjP5tLJsA=",
     [2, 0]),
    2: ("eNp1U2tv0zAUTdt1Y+YNg/EY71fGo2w8BwzGxhhsYR0YkPKlspzUa6KlaU/saJtEJfiwdvvVYCetYAgSydfXvvf43OPr70W/zeM6lxW/lY"
     "jKesKbgixyxZeyGazJHyh0ULTdIcuyWLORoLQvI4yVSGIeyUqTx7whEkkWopa/sZp7BEODcBaFnvwdT1gat0N/IxLMMwkEZT9Om+3tHLeZ"
     "RirkScK3CUuE34qlSlJfEQznUURjZrsYcawdHPCZ36oLXxIRmwnBqFvQjD0Qd1jbiKswnsbBLg5RHO7hCMVR2ynov9TFsT5kXW23deZxt6"
     "gz1mZwYm+3h5MUY7ZTytC+4VS1Wl35qb9scOYUTnt7NYzbNZwxeEVRw1kd7gzpyTnbKTvDQiic93zGvDTUNcWMERmFvj5owrEMhR4uUFx0"
     "ij1corgclIPhIKvpSqCJXqW4lgEboteDnFs4gxuG202KWwNus7D3c7MUJr29YNSd0rsmy/rDFv6yg/VS3+J2oLW6Q3FX4Z4XTBihDNMKxX"
     "3DdIpiuosHNTy0/2qHutgSsuJxKQiLxSZbNisEj/4f1o943MGTvM3quv/wdCDDjJHhGcVzI0NpBy+CMa34rO0arlIAL90Rc8MiZsZ7lUHE"
     "YkthTiv/2st93c2Yr6ZdLFC8Cf7NJuFxQxBqxj6nxQ7e2sF81S2bsxRPFJYcK0OUqtXGOy1+7og23jsFjb9MsSK6cCg+5G9GNxVW3dF+Xd"
     "kLQzXzWVMonhW7VsPH7AyuVCLxqQOatS1bj3hD4nMHX9xxsx1FrU3J6mlbdxBXgkXcE5HE112ZepVfAE0o5g==", [0, 1, 2]),
}


@pytest.mark.parametrize("protocol", PANDAS_1)
def test_pandas_1(path, protocol):
    text, rows = PANDAS_1[protocol]
    path.write_bytes(zlib.decompress(base64.b64decode(text)))
    assert {name: list(column) for name, column in pickles.read(path).items()} == columns(
        FRAME[["seq", "len_seq", "next"]].iloc[rows])


class Writer(pickle._Pickler):
    """Writes globals that need not exist, so that any pickle can be made here."""

    def save_global(self, obj, name=None):
        module, name = getattr(obj, "where", (obj.__module__, obj.__qualname__))
        self.save(module), self.save(name)
        self.write(pickle.STACK_GLOBAL)

    dispatch = pickle._Pickler.dispatch | {type: save_global}


def named(module, name):
    return type("made_up", (), {"where": (module, name)})


class Made:
    """Reduces to a call of a global with arguments, and a state."""

    def __init__(self, module, name, args=(), state=None):
        self.reduced = (named(module, name), args) if state is None else (named(module, name), args, state)

    def __reduce__(self):
        return self.reduced


def write(path, value):
    with path.open("wb") as file:
        Writer(file, 4).dump(value)


@pytest.mark.parametrize("internals", ["pandas.core.internals", "pandas.core.internals.managers"])
def test_pandas_before_1(path, internals):
    """The layout of 0.20 to 1.0: a manager with a state instead of arguments, `_data`, numbered index classes."""
    index = named("pandas.core.indexes.base", "Index")
    numbers = named("pandas.core.indexes.numeric", "Int64Index")
    axes = [Made("pandas.core.indexes.base", "_new_Index", (kind, {"data": data, "name": None}))
            for kind, data in ((index, np.array(["seq", "next"], object)), (numbers, np.array([4, 2])))]
    cells = np.empty((1, 2), object)
    cells[0, 0], cells[0, 1] = [1, 2], [3]
    blocks = [{"values": np.array([[7, 8]]), "mgr_locs": slice(1, 2, 1)}, {"values": cells, "mgr_locs": slice(0, 1, 1)}]
    state = (axes, [], [], {"0.14.1": {"axes": axes, "blocks": blocks}})
    manager = Made(internals, "BlockManager", (), state)
    write(path, Made("pandas.core.frame", "DataFrame", (), {"_data": manager, "_typ": "dataframe", "_metadata": []}))
    got = pickles.read(path)
    assert list(got) == ["seq", "next"] and got["seq"].tolist() == [[1, 2], [3]] and got["next"].tolist() == [7, 8]


def test_python_2(path):
    """Python 2 wrote bytes as text, and knew the built-ins by another name."""
    raw = struct.pack("<2d", 1.0, -2.0).decode("latin1")
    array = (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR(I1\n(I2\nt"
             b"cnumpy\ndtype\n(U\x02f8I0\nI1\ntR(I3\nU\x01<NNNI-1\nI-1\nI0\ntbI00\nU\x10")
    array += raw.encode("latin1") + b"tb"
    path.write_bytes(b"\x80\x02" + array + b".")
    assert pickles.read(path).tolist() == [1.0, -2.0]
    path.write_bytes(b"\x80\x02c__builtin__\nslice\n(I1\nI2\nNtR.")
    assert pickles.read(path) == slice(1, 2, None)


# ---- what is refused

class Bomb:
    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize(("module", "name"), [
    ("os", "system"), ("posix", "system"), ("nt", "system"), ("subprocess", "Popen"), ("builtins", "eval"),
    ("builtins", "exec"), ("builtins", "getattr"), ("builtins", "__import__"), ("builtins", "open"),
    ("builtins", "type"), ("builtins", "object"), ("builtins", "compile"), ("__builtin__", "eval"),
    ("operator", "attrgetter"), ("operator", "methodcaller"), ("functools", "partial"), ("importlib", "import_module"),
    ("builtins", "list.__class__"), ("builtins", "dict.__init__.__globals__"),
    ("collections", "OrderedDict.__reduce__"),
    ("collections", "namedtuple"), ("numpy", "load"), ("numpy", "fromfile"), ("numpy", "memmap"), ("numpy", "save"),
    ("numpy", "ndarray.tofile"), ("numpy.f2py", "compile"), ("numpy.f2py", "run_main"),
    ("numpy.testing._private.utils", "runstring"), ("numpy.core.multiarray", "fromfile"), ("pandas", "eval"),
    ("pandas", "read_pickle"), ("pandas", "DataFrame.eval"), ("pandas", "DataFrame.query"),
    ("pandas", "DataFrame.to_csv"),
    ("pandas.core.frame", "DataFrame.to_pickle"), ("pandas.io.common", "get_handle"), ("pandas.compat", "os.system"),
    ("pandas.core.computation.eval", "eval"), ("pyarrow", "memory_map"), ("pyarrow.lib", "open_file"),
    ("pandasx", "DataFrame"), ("pickle", "loads"), ("_codecs", "decode"), ("codecs", "encode"),
    ("copyreg", "_reconstructor"),
    ("torch._utils", "_rebuild_tensor_v2"), ("nullrec_lib.data.pickles", "_STANDS"), ("sys", "modules"), ("", ""),
])
def test_anything_else_is_refused_by_name(path, refused, module, name):
    for value in (Made(module, name, ("echo",)), named(module, name)):  # called, or only named
        write(path, [1, value])
        assert refused(pickles.read, path) == (
            f"{path}: the pickle asks for {module}.{name}, which data have no need of; nothing was run.")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("function", [os.system, builtins.eval, builtins.exec])
def test_real_bombs_do_not_go_off(path, refused, tmp_path, function, protocol):
    mark = tmp_path / "ran"
    said = {os.system: f"touch {mark}"}.get(function, f"open({str(mark)!r}, 'w')")
    path.write_bytes(pickle.dumps({"a": [Bomb(function, said)]}, protocol))
    assert "asks for" in refused(pickles.read, path) and not mark.exists()
    pickle.loads(path.read_bytes())  # it would have
    assert mark.exists()


def test_a_name_cannot_break_the_sentence(path, refused):
    write(path, Made("os\nsystem. Run: rm", "x" * 500))
    with pytest.raises(ValueError) as caught:
        pickles.read(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_objects_kept_elsewhere_are_refused(path, refused):
    for raw in (b"Pelsewhere\n.", b"\x80\x04\x8c\x01aQ."):
        path.write_bytes(raw)
        assert "an object kept elsewhere" in refused(pickles.read, path)


def test_extension_codes_are_refused(path, refused):
    path.write_bytes(b"\x80\x02\x82\x01.")
    assert "no pickle that can be read as data" in refused(pickles.read, path)


PLAIN = ("i8", False, True)
ALLOWED = [(module, name) for module, name in pickles._REAL] + [("pandas", name) for name in pickles._NAMES]


@pytest.mark.parametrize(("module", "name"), ALLOWED)
def test_what_is_allowed_cannot_be_written_to(path, module, name):
    """BUILD on a class would otherwise leave its mark on every later pickle."""
    before = {key: vars(kind).copy() for key, kind in pickles._REAL.items()}
    stands = {key: vars(kind).copy() for key, kind in pickles._STANDS.items()}
    for state in (b"}\x8c\x08__call__K\x01s", b"N}\x8c\x08__call__K\x01s\x86", b"}\x8c\x0c__setstate__K\x01s"):
        path.write_bytes(b"\x80\x04\x8c" + bytes([len(module)]) + module.encode() + b"\x8c" + bytes([len(name)])
                         + name.encode() + b"\x93" + state + b"b.")
        with pytest.raises(ValueError, match="no pickle that can be read as data"):
            pickles.read(path)
    assert before == {key: vars(kind) for key, kind in pickles._REAL.items()}
    assert stands == {key: vars(kind) for key, kind in pickles._STANDS.items()}


@pytest.mark.parametrize(("dtype", "state"), [
    (("V8", False, True), None), (("M8[ns]", False, True), None), (("i8,i8", False, True), None),
    (([("a", "O")], False, True), None), (("O" * 50, False, True), None), (("i8", False, True), "wrong shape"),
    (("O8", False, True), "bytes for objects"), (("S9", False, True), "wrong shape"),
])
def test_arrays_that_do_not_hold_together(path, refused, dtype, state):
    made = Made("numpy", "dtype", dtype, (3, "<", None, None, None, -1, -1, 63))
    content = (1, (3,) if state == "wrong shape" else (2,), made, False, b"\0" * 16)
    write(path, Made("numpy.core.multiarray", "_reconstruct", (named("numpy", "ndarray"), (0,), b"b"), content))
    assert "no pickle that can be read as data" in refused(pickles.read, path)
    write(path, Made("numpy._core.numeric", "_frombuffer", (b"\0" * 16, made, (3,), "C")))
    assert "no pickle that can be read as data" in refused(pickles.read, path)


def test_numpys_own_dtypes_stay_as_they_are(path):
    """A dtype asked for without a copy is numpy's own: writing its byte order would reach every array there is."""
    made = Made("numpy", "dtype", ("i8", False, False), (3, ">", None, None, None, -1, -1, 0))
    write(path, Made("numpy._core.numeric", "_frombuffer", (struct.pack(">q", 5), made, (1,), "C")))
    assert pickles.read(path).tolist() == [5]
    assert np.dtype("i8").byteorder == "=" and np.arange(2).tolist() == [0, 1]


def test_frames_that_do_not_hold_together(path, refused):
    def frame(blocks, names):
        axes = [Made("pandas", "_new_Index", (named("pandas", "Index"), {"data": np.array(names, object)}))]
        return Made("pandas", "DataFrame", (), {"_mgr": Made("pandas", "BlockManager", (blocks, axes))})

    def block(values, places):
        return Made("pandas", "_unpickle_block", (values, places, 2))

    two = np.zeros((2, 3))
    for value in (frame((block(two, slice(0, 1)),), ["a"]), frame((block(two, np.array([0, 9])),), ["a", "b"]),
                  frame((), ["a"]), frame((block(two, slice(0, 2)), block(two[:1, :2], slice(2, 3))), ["a", "b", "c"]),
                  frame((block("text", slice(0, 1)),), ["a"]), Made("pandas", "DataFrame"), Made("pandas", "NA"),
                  Made("pandas", "DataFrame", (two,)), Made("pandas", "StringDtype", ("python",))):
        write(path, value)
        assert "no pickle that can be read as data" in refused(pickles.read, path)


@pytest.mark.parametrize("value", [FRAME, np.arange(9.0), [np.zeros(3)] * 2], ids=["frame", "array", "list"])
def test_a_file_cut_off_anywhere(path, refused, value):
    whole = pickle.dumps(value)
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        assert refused(pickles.read, path).startswith(f"{path}: this is no pickle that can be read as data (")
    path.unlink()
    assert refused(pickles.read, path) == f"{path}: there is no such file."


WHOLE = pickle.dumps(FRAME.iloc[[1, 0]], 4)


@settings(deadline=None, max_examples=300)
@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255))
def test_a_changed_byte_gives_data_or_one_sentence(tmp_path_factory, place, byte):
    path = tmp_path_factory.getbasetemp() / "changed.pickle"
    path.write_bytes(WHOLE[:place] + bytes([byte]) + WHOLE[place + 1 :])
    try:
        pickles.read(path)
    except ValueError as error:
        assert type(error).__name__ == "InputError" and "\n" not in str(error)


# ---- what would be large

def text(name: str) -> bytes:
    return b"\x8c" + bytes([len(name)]) + name.encode()


def call(module: str, name: str, args: bytes) -> bytes:
    """A call of a global with the tuple that `args` leaves on the stack."""
    return text(module) + text(name) + b"\x93" + args + b"R"


def number(value: int) -> bytes:
    return b"\x8a\x0a" + value.to_bytes(10, "little", signed=True)


HUGE = number(10**10)
# A list, dict or text of 1,000 in the memo's first place, and then as often as is written.
THOUSAND = b"](" + b"K\x01" * 1000 + b"e\x94"
DTYPE = call("numpy", "dtype", text("S0") + b"\x89\x88\x87")
ZERO_WIDE = b"".join((call("numpy.core.multiarray", "_reconstruct", text("numpy") + text("ndarray") + b"\x93K\x00\x85C\x00\x87"),
                      b"(K\x01", HUGE, b"\x85", DTYPE, b"\x89C\x00tb"))
DEEP = b"))\x86"
for _level in range(60):
    DEEP += b"\x940" + b"h" + bytes([_level]) + b"h" + bytes([_level]) + b"\x86"
INDEX = text("pandas") + text("RangeIndex") + b"\x93"
BOMBS = {
    "an entry of the memo": b"Nr\xff\xff\xff\x7f",
    "an entry of the memo in text": b"Np4000000000\n",
    "a text": b"X\xff\xff\xff\x7f", "a text of 8 bytes": b"\x8d" + (10**12).to_bytes(8, "little"),
    "bytes": b"B\xff\xff\xff\x7f", "bytes of 8 bytes": b"\x8e" + (10**12).to_bytes(8, "little"),
    "a bytearray": b"\x96" + (10**10).to_bytes(8, "little"), "a whole number": b"\x8b\xff\xff\xff\x7f",
    "digits": b"I" + b"9" * 5000 + b"\n", "digits of a long": b"L" + b"9" * 5000 + b"L\n",
    "digits called": call("builtins", "int", b"X\x88\x13\x00\x00" + b"9" * 5000 + b"\x85"),
    **{f"{kind} of a number": call("builtins", kind, HUGE + b"\x85") for kind in ("bytes", "bytearray", "list", "tuple")},
    **{f"{kind} of a range": call("builtins", kind, call("builtins", "range", HUGE + b"\x85") + b"\x85")
       for kind in ("list", "tuple", "set", "frozenset", "bytes", "bytearray", "str", "dict")},
    "an index": call("pandas", "_new_Index", INDEX + b"}(" + text("start") + b"K\x00" + text("stop") + HUGE
                     + text("step") + b"K\x01u\x86"),
    "an array without width": ZERO_WIDE,
    "a shape that is multiplied": b"".join((
        call("numpy.core.multiarray", "_reconstruct", text("numpy") + text("ndarray") + b"\x93K\x00\x85C\x00\x87"),
        b"(K\x01", b"]K\x00a" + HUGE + b"\x86", DTYPE, b"\x89C\x00tb")),
    **{f"copies of a {kind}": THOUSAND + b"](" + call("builtins", kind, b"h\x00\x85") * 20_000 + b"e"
       for kind in ("list", "bytes", "bytearray")},
    "copies as bytes": b"X\xe8\x03\x00\x00" + b"a" * 1000 + b"\x94]("
                       + call("_codecs", "encode", b"h\x00\x85") * 20_000 + b"e",
    "a list in itself": b"]N" b"a\x94" + (b"h\x00" + call("builtins", "slice", b"K\x00K\x00\x86") + b"h\x00s0") * 60,
    "a key of keys": b"}" + DEEP + b"Ns", "keys of keys": b"}(" + DEEP + b"Nu", "an element of elements": b"\x8f(" + DEEP
    + b"\x90", "a frozen set of elements": b"(" + DEEP + b"\x91", "a key in text": b"(" + DEEP + b"Nd",
    **{f"a {kind} of elements": call("builtins", kind, b"]" + DEEP + b"a\x85") for kind in ("set", "frozenset")},
    "keys called": call("builtins", "dict", b"]" + DEEP + b"N\x86a\x85"),
    "a key too deep": b"})" + b"\x85" * 200_000 + b"Ns",
    "an element too deep": call("builtins", "set", b"])" + b"\x85" * 200_000 + b"a\x85"),
    "a key twice the one on top": b"})" + b"2\x86" * 60 + b"Ns",
}


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS)
def test_a_small_file_makes_nothing_large(path, refused, content):
    path.write_bytes(b"\x80\x04" + content + b".")
    tracemalloc.start()
    try:
        sentence = refused(pickles.read, path)
        assert tracemalloc.get_traced_memory()[1] < 100 * path.stat().st_size + (16 << 20)
    finally:
        tracemalloc.stop()
    assert sentence.startswith(f"{path}: ") and "no pickle that can be read as data" in sentence
    assert len(sentence) < 500


def test_names_that_hold_themselves_are_not_written_out(path, refused):
    """The text of such a tuple would be longer than there is memory."""
    for value in (call("numpy", "dtype", DEEP + b"\x89\x88\x87"), call("pyarrow", "type_for_alias", DEEP + b"\x85")):
        path.write_bytes(b"\x80\x04" + text("pyarrow") + text("_restore_array") + b"\x93(" + value
                         + b"K\x00K\x00K\x00]tR.")
        assert "no pickle that can be read as data" in refused(pickles.read, path)


def test_texts_that_overlap_are_refused(path, refused):
    def strings(ends):
        ends = np.array(ends, "<i4").tobytes()
        buffers = [None, Made("pyarrow", "py_buffer", (ends,)), Made("pyarrow", "py_buffer", (b"abcdef",))]
        write(path, Made("pyarrow.lib", "_restore_array", (
            (Made("pyarrow.lib", "type_for_alias", ("string",)), len(ends) // 4 - 1, 0, 0, buffers),)))

    strings([0, 2, 2, 6])
    assert pickles.read(path).tolist() == ["ab", "", "cdef"]
    for ends in ([0, 6, 0, 6], [0, 7], [-1, 6], [6, 0]):
        strings(ends)
        assert "no pickle that can be read as data" in refused(pickles.read, path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", [
    {(1, (2, "a")): 1.5, "b": {3: None}}, [(1, 2)] * 3000, {i: (i, str(i)) for i in range(3000)},
    [float(i) for i in range(3000)], [True, None, -1, 300, 70_000, 2**40, "é" * 300, b"x" * 300], [[]] * 1000, ((),),
    {frozenset({1, (2, 3)})}, [[1, 2.5], [None, 2**31]] * 700, {"a": [{"b": {"c": ()}}]},
], ids=range(10))
def test_what_people_keep_is_read(path, value, protocol):
    path.write_bytes(pickle.dumps(value, protocol))
    assert pickles.read(path) == value
    path.write_bytes(pickletools.optimize(path.read_bytes()))
    assert pickles.read(path) == value


keys = st.recursive(st.integers(-2**70, 2**70) | st.text(max_size=3) | st.booleans() | st.none() | st.binary(max_size=3),
                    lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=6)
values = st.recursive(keys | st.floats(allow_nan=False), lambda inner: st.lists(inner, max_size=4)
                      | st.dictionaries(keys, inner, max_size=3) | st.tuples(inner, inner), max_leaves=20)


@settings(deadline=None, max_examples=200)
@given(values, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_any_plain_value_comes_back(tmp_path_factory, value, protocol):
    path = tmp_path_factory.getbasetemp() / "plain.pickle"
    path.write_bytes(pickle.dumps([value, value], protocol))
    assert pickles.read(path) == [value, value]


# ---- matrices

WIDE = [[0.5, 1.0], [2.0, -1.0], [3.0, 4.0]]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", [
    np.array(WIDE), np.array(WIDE, np.float32), np.array(WIDE, ">f8"), np.array(WIDE, np.float16), np.array(WIDE, object),
    np.array(WIDE).tolist(), list(np.array(WIDE)), tuple(np.array(WIDE)), [list(row) for row in np.array(WIDE)],
    [tuple(row) for row in WIDE], list(np.array(WIDE, object)),
], ids=range(11))
def test_a_matrix(path, value, protocol):
    path.write_bytes(pickle.dumps(value, protocol))
    got = pickles.matrix(path)
    assert got.dtype == np.float32 and got.tolist() == WIDE


def test_a_matrix_of_whole_numbers_and_truth(path):
    for value in ([[1, True], [0, 2]], np.array([[1, 1], [0, 2]], np.uint8)):
        path.write_bytes(pickle.dumps(value))
        assert pickles.matrix(path).tolist() == [[1.0, 1.0], [0.0, 2.0]]


ITSELF = []
ITSELF.append(ITSELF)
OFTEN = [1.0]
for _level in range(40):
    OFTEN = [OFTEN, OFTEN]


@pytest.mark.parametrize(("value", "words"), [
    (np.zeros((3, 1, 2)), "(3, 1, 2)"), (np.zeros(3), "(3,)"), (np.array(1.0), "()"), (np.zeros((0, 4)), "(0, 4)"),
    (np.zeros((3, 0)), "(3, 0)"), (np.array(WIDE) * 1j, "complex128"), (np.array([["a"]]), "<U1"), (7, "int"), ("ab", "str"),
    (None, "NoneType"), ({"a": WIDE}, "dict"), ({1, 2}, "set"), ([], "list"), ([[]], "list"), ([1.0, 2.0], "float in row 0"),
    ([[1.0], [2.0, 3.0]], "2 numbers where row 0 has 1 in row 1"), ([[[1.0]]], "list in row 0"), ([[1.0], None], "NoneType in row 1"),
    ([[1.0], [None]], "NoneType in row 1"), ([[1.0], ["2"]], "str in row 1"), ([[1.0], [{}]], "dict in row 1"),
    ([np.zeros((1, 2))] * 2, "(1, 2) in row 0"), (list(np.zeros((3, 2)) * 1j), "complex128 in row 0"),
    (np.array([np.zeros(2), None], object), "NoneType in row 1"), ([[1.0], [[2.0]]], "list in row 1"),
    (ITSELF, "list in row 0"), (OFTEN, "list in row 0"), ([b"ab", b"cd"], "bytes in row 0"), (range(4), "range"),
], ids=range(29))
def test_what_is_no_matrix_is_named(path, refused, value, words):
    path.write_bytes(pickle.dumps(value))
    sentence = refused(pickles.matrix, path)
    assert sentence.startswith(f"{path}: expected rows of numbers") and f" {words}" in sentence.split("found")[1]


@pytest.mark.parametrize(("number", "words"), [
    (np.nan, "not finite"), (np.inf, "not finite"), (1e39, "too large"), (-1e300, "too large"), (10**400, "too large"),
])
def test_numbers_that_float32_lacks(path, refused, number, words):
    rows = [[1.0, 2.0], [3.0, number], [number, 4.0]]
    kinds = [rows, np.array(rows, object)] + ([] if number == 10**400 else [np.array(rows), list(np.array(rows))])
    for value in kinds:
        path.write_bytes(pickle.dumps(value))
        sentence = refused(pickles.matrix, path)
        assert sentence.startswith(f"{path}: row 1 ") and words in sentence


def test_a_row_many_times_over_is_no_matrix(path, refused):
    path.write_bytes(pickle.dumps([[1.0] * 10_000] * 10_000))
    assert "many times over" in refused(pickles.matrix, path)
    path.write_bytes(pickle.dumps([[0.0] * 64] * 1000))  # items without text may share one
    assert pickles.matrix(path).shape == (1000, 64)


def test_pandas_reads_no_pickle_here():
    from pathlib import Path

    for file in Path(pickles.__file__).parents[1].rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert "read_pickle" not in text and "pickle.load" not in text and "torch.load" not in text, file
