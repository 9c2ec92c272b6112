"""Models as a stranger might hand them in: names that lie, sizes that lie, and bombs.

Each builder writes a model, and what belongs to it, into an empty folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

__all__ = ["BUILDERS", "Builder"]

Builder = Callable[[Path], ModelProto | bytes]
BUILDERS: dict[str, Builder] = {}
_HUGE = 10**12
_OPSET = 17


def _case(name: str) -> Callable[[Builder], Builder]:
    def add(builder: Builder) -> Builder:
        BUILDERS[name] = builder
        return builder

    return add


def _node(op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> NodeProto:
    return helper.make_node(op, inputs, outputs, **attributes)


def _model(nodes: Sequence[NodeProto], inputs: dict[str, Sequence[int | str]], outputs: dict[str, Sequence[int] | None],
           functions: Sequence[FunctionProto] = (), **stored: Any) -> ModelProto:  # fmt: skip
    def value(name: str, shape: Sequence[int | str] | None) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        list(nodes),
        "g",
        [value(*each) for each in inputs.items()],
        [value(*each) for each in outputs.items()],
        [numpy_helper.from_array(np.asarray(held), name) for name, held in stored.items()],
    )
    imports = [helper.make_opsetid("", _OPSET), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, ir_version=8, opset_imports=imports, functions=list(functions))


def _weight(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _two_layers(**changes: Any) -> ModelProto:
    """A Conv (with these attributes), a ReLU and a Conv."""
    nodes = [_node("Conv", ["x", "w", "b"], ["a"], **changes), _node("Relu", ["a"], ["r"]),
             _node("Conv", ["r", "v"], ["y"])]  # fmt: skip
    return _model(nodes, {"x": [1, 4, 8, 8]}, {"y": None}, w=_weight(8, 4, 1, 1), b=_weight(8), v=_weight(4, 8, 1, 1))


def _between(*nodes: NodeProto, size: int = 8, wide: int = 8, **stored: Any) -> ModelProto:
    """Nodes from a [1, 8] to z, between two matrices."""
    ends = [_node("MatMul", ["x", "w"], ["a"]), *nodes, _node("MatMul", ["z", "v"], ["y"])]
    return _model(ends, {"x": [1, 4]}, {"y": None}, w=_weight(4, size), v=_weight(wide, 4), **stored)


# ---- data outside of the file ---------------------------------------------------------------------------------------


def _external(folder: Path, location: str, **entries: object) -> ModelProto:
    model = _two_layers()
    (folder / "weights.bin").write_bytes(bytes(128))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return model


for _name, _location in {
    "absolute path": "/etc/passwd", "parent folder": "../weights.bin", "hidden parent": "a/../../weights.bin",
    "windows path": "C:\\weights.bin", "windows parent": "..\\weights.bin", "device": "/dev/zero",
    "no location": "", "missing file": "absent.bin", "null byte": "weights.bin\0",
}.items():  # fmt: skip
    BUILDERS[f"external: {_name}"] = lambda folder, location=_location: _external(folder, location)  # type: ignore[misc]
for _name, _entries in {
    "offset beyond": {"offset": 10**6}, "negative offset": {"offset": -1}, "negative length": {"length": -1},
    "overflow": {"offset": 2**63, "length": 2**63}, "too short": {"length": 64}, "words": {"offset": "here"},
}.items():  # fmt: skip
    BUILDERS[f"external: {_name}"] = lambda folder, e=_entries: _external(folder, "weights.bin", **e)  # type: ignore[misc]


@_case("external: symbolic link")
def _(folder: Path) -> ModelProto:
    (folder / "link.bin").symlink_to("/etc/passwd")
    return _external(folder, "link.bin")


@_case("external: pipe")
def _(folder: Path) -> ModelProto:
    os.mkfifo(folder / "pipe.bin")
    return _external(folder, "pipe.bin")


@_case("external: a terabyte of nothing")
def _(folder: Path) -> ModelProto:
    """A file that is all holes, as large as the weight of it."""
    with (folder / "sparse.bin").open("wb") as file:
        file.truncate(_HUGE)
    tensor = TensorProto(name="w", dims=[8, _HUGE // 32], data_type=1, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "sparse.bin"), ("length", str(_HUGE))):
        tensor.external_data.add(key=key, value=value)
    nodes = [_node("Gemm", ["x", "w"], ["a"], transB=1), _node("Relu", ["a"], ["r"]),
             _node("MatMul", ["r", "v"], ["y"])]  # fmt: skip
    model = _model(nodes, {"x": [1, _HUGE // 32]}, {"y": None}, v=_weight(8, 4))
    model.graph.initializer.append(tensor)
    return model


# ---- sizes that lie -------------------------------------------------------------------------------------------------


def _with_dims(*dims: int, kind: int = TensorProto.FLOAT) -> ModelProto:
    model = _two_layers()
    model.graph.initializer[0].dims[:] = dims
    model.graph.initializer[0].data_type = kind
    return model


for _dims in ((9, 4, 1, 1), (-8, -4, 1, 1), (2**40, 2**40), (2**63 - 1, 2), (0, 4, 1, 1), ()):
    BUILDERS[f"weight of {list(_dims)}"] = lambda _f, dims=_dims: _with_dims(*dims)  # type: ignore[misc]
for _kind in (0, 8, 14, 99, -1):
    BUILDERS[f"weight of type {_kind}"] = lambda _f, kind=_kind: _with_dims(8, 4, 1, 1, kind=kind)  # type: ignore[misc]


@_case("empty weight with a huge axis")
def _(_folder: Path) -> ModelProto:
    model = _two_layers()
    model.graph.initializer[0].CopyFrom(TensorProto(name="w", dims=[_HUGE, 0, 1, 1], data_type=1, raw_data=b""))
    return model


@_case("many empty weights with long axes")
def _(_folder: Path) -> ModelProto:
    nodes = [_node("Add", [f"a{i}", f"w{i}"], [f"a{i + 1}"]) for i in range(2000)]
    model = _model(nodes, {"a0": [0, 1]}, {"a2000": None})
    model.graph.initializer.extend(TensorProto(name=f"w{i}", dims=[0, 4_000_000], data_type=1) for i in range(2000))
    return model


for _shape in ((1, _HUGE, 8, 8), (_HUGE, 4, 8, 8), (1, 4, _HUGE, _HUGE), (2**62,) * 4, (1, 4, -7, 8), (0, 4, 0, 0)):
    def _declared(_folder: Path, shape: tuple[int, ...] = _shape) -> ModelProto:
        model = _two_layers()
        model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", 1, shape))
        return model

    BUILDERS[f"input of {list(_shape)}"] = _declared


# ---- bombs under folding --------------------------------------------------------------------------------------------

_SQUARE = np.array([10**6, 10**6], np.int64)
_BOMBS: dict[str, Callable[[], ModelProto]] = {
    "ConstantOfShape": lambda: _between(
        _node("ConstantOfShape", ["s"], ["c"]), _node("Add", ["a", "c"], ["z"]), s=_SQUARE),
    "ConstantOfShape, a channel axis": lambda: _between(
        _node("ConstantOfShape", ["s"], ["c"]), _node("MatMul", ["c", "u"], ["d"]), _node("Add", ["a", "d"], ["z"]),
        s=np.array([_HUGE, 8]), u=_weight(8, 8)),
    "ConstantOfShape of 4 GB": lambda: _between(
        _node("ConstantOfShape", ["s"], ["c"]), _node("ReduceSum", ["c"], ["d"]), _node("Add", ["a", "d"], ["z"]),
        s=np.array([10**9])),
    "Expand": lambda: _between(_node("Expand", ["a", "s"], ["e"]), _node("ReduceSum", ["e"], ["d"]),
                               _node("Add", ["a", "d"], ["z"]), s=np.array([10**6, 10**6, 8])),
    "Expand of a weight": lambda: _between(_node("Expand", ["o", "s"], ["e"]), _node("MatMul", ["a", "e"], ["m"]),
                                           _node("MatMul", ["m", "u"], ["z"]), o=_weight(1, 1),
                                           s=np.array([8, 10**10]), u=_weight(1, 8)),
    "Tile": lambda: _between(_node("Tile", ["a", "s"], ["e"]), _node("Relu", ["e"], ["z"]), s=np.array([1, 10**11])),
    "Tile, many times": lambda: _between(
        *(_node("Tile", [f"t{i}" if i else "o", "s"], [f"t{i + 1}"]) for i in range(40)),
        _node("ReduceMax", ["t40"], ["d"]), _node("Add", ["a", "d"], ["z"]), o=_weight(1, 8), s=np.array([2, 2])),
    "Range": lambda: _between(_node("Range", ["i", "j", "k"], ["r"]), _node("ReduceSum", ["r"], ["d"]),
                              _node("Add", ["a", "d"], ["z"]), i=np.float32(0), j=np.float32(1e12), k=np.float32(1)),
    "Range of steps of nothing": lambda: _between(
        _node("Range", ["i", "j", "k"], ["r"]), _node("ReduceSum", ["r"], ["d"]), _node("Add", ["a", "d"], ["z"]),
        i=np.float32(0), j=np.float32(1), k=np.float32(0)),
    "Range in shape arithmetic": lambda: _between(
        _node("Range", ["i", "j", "k"], ["r"]), _node("Reshape", ["a", "r"], ["z"]),
        i=np.int64(0), j=np.int64(-(2**62)), k=np.int64(-1)),
    "Pad": lambda: _between(_node("Pad", ["a", "s"], ["z"]), s=np.array([0, 10**12, 0, 0]), wide=8),
    "Pad by less than nothing": lambda: _between(_node("Pad", ["a", "s"], ["z"]), s=np.array([0, -(10**12), 0, 0])),
    "Resize": lambda: _between(_node("Reshape", ["a", "t"], ["b"]), _node("Resize", ["b", "", "", "s"], ["c"]),
                               _node("GlobalMaxPool", ["c"], ["p"]), _node("Flatten", ["p"], ["z"]),
                               t=np.array([1, 8, 1, 1]), s=np.array([1, 8, 10**6, 10**6])),
    "Concat of much": lambda: _between(
        _node("Expand", ["a", "s"], ["e"]), _node("Concat", ["e"] * 1000, ["c"], axis=1),
        _node("ReduceSum", ["c"], ["d"]), _node("Add", ["a", "d"], ["z"]), s=np.array([10**7, 8])),
    "Concat, many times": lambda: _between(
        *(_node("Concat", [f"c{i}" if i else "a"] * 2, [f"c{i + 1}"], axis=1) for i in range(40)),
        _node("ReduceMax", ["c40"], ["d"]), _node("Add", ["a", "d"], ["z"])),
    "Gather, many times": lambda: _between(
        *(_node("Gather", [f"g{i}" if i else "a", "i"], [f"g{i + 1}"], axis=1) for i in range(7)),
        _node("ReduceMax", ["g7"], ["d"]), _node("Add", ["a", "d"], ["z"]), i=np.zeros((64, 64), np.int64)),
    "OneHot": lambda: _between(_node("OneHot", ["i", "n", "f"], ["o"]), _node("ReduceSum", ["o"], ["d"]),
                               _node("Add", ["a", "d"], ["z"]), i=np.zeros(8, np.int64), n=np.int64(10**11),
                               f=np.array([0, 1], np.float32)),
    "Reshape that mixes much": lambda: _between(
        _node("Expand", ["a", "s"], ["e"]), _node("Reshape", ["e", "t"], ["r"]), _node("ReduceMax", ["r"], ["d"]),
        _node("Add", ["a", "d"], ["z"]), s=np.array([10**5 + 3, 10**5, 8]), t=np.array([8, 10**5, 10**5 + 3])),
    "SpaceToDepth": lambda: _between(
        _node("Reshape", ["a", "t"], ["b"]), _node("SpaceToDepth", ["b"], ["c"], blocksize=10**6),
        _node("Flatten", ["c"], ["z"]), t=np.array([1, 8, 1, 1])),
    "Einsum": lambda: _between(_node("Einsum", ["a", "a", "a"], ["e"], equation="ab,cd,ef->abcdef"),
                               _node("ReduceSum", ["e"], ["d"]), _node("Add", ["a", "d"], ["z"])),
}  # fmt: skip
@_case("bomb: an input of which one size is open")
def _(_folder: Path) -> ModelProto:
    model = _between(_node("ReduceMax", ["b"], ["m"]), _node("Add", ["a", "m"], ["z"]))
    model.graph.input.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, ["N", _HUGE, 4]))
    return model


def _counting(limit: int, condition: str) -> ModelProto:
    """A Loop of so many iterations, that returns every one of them."""
    def scalar(name: str, kind: int) -> Any:
        return helper.make_tensor_value_info(name, kind, [])

    body = helper.make_graph(
        [_node("Less", ["i", "three"], ["few"]), _node("Identity", [condition], ["on"]),
         _node("Cast", ["i"], ["each"], to=TensorProto.FLOAT)], "body",
        [scalar("i", TensorProto.INT64), scalar("given", TensorProto.BOOL)],
        [scalar("on", TensorProto.BOOL), scalar("each", TensorProto.FLOAT)],
    )  # fmt: skip
    nodes = [_node("Loop", ["limit", ""], ["all"], body=body), _node("ReduceMax", ["all"], ["m"]),
             _node("Add", ["a", "m"], ["z"])]  # fmt: skip
    return _between(*nodes, limit=np.int64(limit), three=np.int64(3))


BUILDERS["bomb: Loop that goes on for years"] = lambda _f: _counting(_HUGE, "given")
BUILDERS["Loop that could go on, and stops"] = lambda _f: _counting(2**62, "few")


for _name, _bomb in _BOMBS.items():
    BUILDERS[f"bomb: {_name}"] = lambda _f, bomb=_bomb: bomb()  # type: ignore[misc]


# ---- names and order ------------------------------------------------------------------------------------------------

_GRAPHS: dict[str, Callable[[], ModelProto]] = {
    "cycle": lambda: _between(
        _node("Add", ["a", "q"], ["p"]), _node("Relu", ["p"], ["q"]), _node("Relu", ["q"], ["z"])),
    "made twice": lambda: _between(_node("Relu", ["a"], ["z"]), _node("Abs", ["a"], ["z"])),
    "input made again": lambda: _between(_node("Relu", ["a"], ["z"]), _node("Abs", ["a"], ["x"])),
    "made by nobody": lambda: _between(_node("Add", ["a", "nobody"], ["z"])),
    "empty names": lambda: _between(_node("Relu", ["a"], [""]), _node("Relu", [""], ["z"])),
    "no inputs at all": lambda: _between(_node("Relu", [], ["z"])),
    "no outputs at all": lambda: _between(_node("Relu", ["a"], []), _node("Identity", ["a"], ["z"])),
    "too many inputs": lambda: _between(_node("Relu", ["a"] * 1000, ["z"])),
    "no operator": lambda: _between(_node("", ["a"], ["z"])),
    "unknown operator": lambda: _between(_node("Frobnicate", ["a"], ["z"])),
    "unknown domain": lambda: _between(_node("Relu", ["a"], ["z"], domain="nowhere")),
    "Constant without a value": lambda: _between(_node("Constant", [], ["c"]), _node("Add", ["a", "c"], ["z"])),
    "Constant with two values": lambda: _between(
        _node("Constant", [], ["c"], value_float=1.0, value_int=1), _node("Add", ["a", "c"], ["z"])),
    "Constant without an output": lambda: _between(
        _node("Constant", [], [], value_float=1.0), _node("Relu", ["a"], ["z"])),
    "axis out of range": lambda: _between(_node("Softmax", ["a"], ["z"], axis=99)),
    "axis far out of range": lambda: _between(_node("Concat", ["a", "a"], ["z"], axis=-(2**63))),
    "not a permutation": lambda: _between(_node("Transpose", ["a"], ["z"], perm=[0, 7])),
    "permutation twice": lambda: _between(_node("Transpose", ["a"], ["z"], perm=[1, 1])),
    "reshape to less": lambda: _between(_node("Reshape", ["a", "s"], ["z"]), s=np.array([1, 3])),
    "reshape to two unknowns": lambda: _between(_node("Reshape", ["a", "s"], ["z"]), s=np.array([-1, -1])),
    "reshape to words": lambda: _between(_node("Reshape", ["a", "s"], ["z"]), s=np.array([1.5, np.nan], np.float32)),
    "gather beyond": lambda: _between(_node("Gather", ["a", "i"], ["z"], axis=1), i=np.arange(100, 108)),
    "slice of nothing": lambda: _between(_node("Slice", ["a", "s", "e", "x"], ["z"]), s=np.array([5]), e=np.array([5]),
                                         x=np.array([1]), wide=0),
    "slice by steps of 0": lambda: _between(_node("Slice", ["a", "s", "e", "x", "d"], ["z"]), s=np.array([0]),
                                            e=np.array([8]), x=np.array([1]), d=np.array([0])),
    "split into too much": lambda: _between(_node("Split", ["a", "s"], ["z", "u"], axis=1), s=np.array([2**62, 2**62])),
    "split of negative sizes": lambda: _between(_node("Split", ["a", "s"], ["z", "u"], axis=1), s=np.array([16, -8])),
    "squeeze of what is wide": lambda: _between(_node("Squeeze", ["a", "s"], ["z"]), s=np.array([1])),
    "sizes that do not match": lambda: _between(_node("MatMul", ["a", "u"], ["z"]), u=_weight(5, 8)),
    "matrix of rank 0": lambda: _between(_node("MatMul", ["a", "u"], ["z"]), u=np.float32(1)),
    "Gemm of rank 5": lambda: _between(_node("Gemm", ["a", "u"], ["z"]), u=_weight(1, 1, 1, 8, 8)),
    "doubles among floats": lambda: _between(_node("MatMul", ["a", "u"], ["z"]), u=np.ones((8, 8))),
    "text among floats": lambda: _between(_node("Add", ["a", "u"], ["z"]), u=np.array(["b"] * 8, object)),
    "einsum of nonsense": lambda: _between(_node("Einsum", ["a"], ["z"], equation="->,,->..")),
    "infinite weights": lambda: _between(_node("MatMul", ["a", "u"], ["z"]), u=np.full((8, 8), np.inf, np.float32)),
    "weights that are no numbers": lambda: _between(_node("MatMul", ["a", "u"], ["z"]),
                                                    u=np.where(np.eye(8), np.nan, 1).astype(np.float32)),
    "normalisation by nothing": lambda: _between(
        _node("BatchNormalization", ["a", "g", "g", "g", "n"], ["z"]), g=_weight(8), n=np.full(8, -1, np.float32)),
    "recurrent layer of nothing": lambda: _between(
        _node("LSTM", ["a", "w", "w"], ["z"], hidden_size=-3)),
    "output that is an input": lambda: _model([], {"x": [1, 4]}, {"x": [1, 4]}),
    "output that is stored": lambda: _model([], {"x": [1, 4]}, {"w": [8, 4]}, w=_weight(8, 4)),
    "output twice": lambda: _model([_node("Relu", ["x"], ["y"])], {"x": [1, 4]}, {"y": [1, 4]}),
}  # fmt: skip
for _name, _graph in _GRAPHS.items():
    BUILDERS[f"graph: {_name}"] = lambda _f, graph=_graph: graph()  # type: ignore[misc]

_ATTRIBUTES: dict[str, dict[str, Any]] = {
    "group of 0": {"group": 0}, "negative group": {"group": -4}, "group of 3": {"group": 3},
    "huge group": {"group": _HUGE}, "strides of 0": {"strides": [0, 0]}, "negative strides": {"strides": [-1, -1]},
    "strides of rank 7": {"strides": [1] * 7}, "huge strides": {"strides": [_HUGE, _HUGE]},
    "huge pads": {"pads": [_HUGE] * 4}, "negative pads": {"pads": [-5] * 4}, "dilations of 0": {"dilations": [0, 0]},
    "wrong kernel": {"kernel_shape": [3, 3]}, "kernel of 0": {"kernel_shape": [0, 0]},
    "strides as text": {"strides": "no"},
    "group as number": {"group": 1.5}, "group as text": {"group": "two"}, "unknown padding": {"auto_pad": "EVERYWHERE"},
    "text that is not UTF-8": {"auto_pad": b"\xff\xfe"}, "a million attributes": {"note": list(range(10**6))},
}  # fmt: skip
for _name, _held in _ATTRIBUTES.items():
    BUILDERS[f"Conv: {_name}"] = lambda _f, held=_held: _two_layers(**held)  # type: ignore[misc]


@_case("Conv: group twice")
def _(_folder: Path) -> ModelProto:
    model = _two_layers(group=1)
    model.graph.node[0].attribute.append(helper.make_attribute("group", 4))
    return model


@_case("Conv: group without a value")
def _(_folder: Path) -> ModelProto:
    model = _two_layers(group=1)
    model.graph.node[0].attribute[0].ClearField("i")
    model.graph.node[0].attribute[0].ClearField("type")
    return model


@_case("Conv: 3×3, dilations of rank 1")
def _(_folder: Path) -> ModelProto:
    nodes = [_node("Conv", ["x", "w"], ["a"], dilations=[2]), _node("Relu", ["a"], ["r"]),
             _node("Conv", ["r", "v"], ["y"])]  # fmt: skip
    return _model(nodes, {"x": [1, 4, 8, 8]}, {"y": None}, w=_weight(8, 4, 3, 3), v=_weight(4, 8, 1, 1))


@_case("Conv: weights of 1e38")
def _(_folder: Path) -> ModelProto:
    nodes = [_node("Conv", ["x", "w"], ["a"]), _node("Conv", ["a", "v"], ["y"])]
    large, larger = (_weight(*shape) * np.float32(1e38) for shape in ((8, 4, 3, 3), (4, 8, 3, 3)))
    return _model(nodes, {"x": [1, 4, 8, 8]}, {"y": None}, w=large, v=larger)


@_case("no such element type")
def _(_folder: Path) -> ModelProto:
    model = _between(_node("Cast", ["a"], ["z"], to=-3))
    model.graph.input[0].type.tensor_type.elem_type = -(2**31)
    return model


@_case("text that is not UTF-8")
def _(_folder: Path) -> bytes:
    return bytes(_two_layers().SerializeToString()).replace(b"Relu", b"Re\x80u")


@_case("graph: name that is not UTF-8")
def _(_folder: Path) -> bytes:
    model = _two_layers()
    model.graph.name = "name"
    return bytes(model.SerializeToString()).replace(b"name", b"na\x80e")


@_case("two lines in the name of an operator")
def _(_folder: Path) -> ModelProto:
    return _between(_node("Re\nlu", ["a"], ["z"]))


@_case("Shape of two")
def _(_folder: Path) -> ModelProto:
    return _between(_node("Shape", ["a", "a"], ["s"]), _node("Reshape", ["a", "s"], ["z"]))


@_case("Conv: weight for other channels")
def _(_folder: Path) -> ModelProto:
    nodes = [_node("Conv", ["x", "w"], ["a"]), _node("Concat", ["a"], ["b"], axis=1), _node("Conv", ["b", "v"], ["y"])]
    return _model(nodes, {"x": [1, 4, 8, 8]}, {"y": None}, w=_weight(1, 4, 1, 1), v=_weight(4, 26, 3, 3))


@_case("Conv: weight of rank 1")
def _(_folder: Path) -> ModelProto:
    return _model([_node("Conv", ["x", "w"], ["y"])], {"x": ["N", "C", 8, 8]}, {"y": None}, w=_weight(8))


@_case("MatMul of a scalar")
def _(_folder: Path) -> ModelProto:
    return _model([_node("MatMul", ["x", "w"], ["y"])], {"x": []}, {"y": None}, w=_weight(8, 8))


@_case("size that is not UTF-8")
def _(_folder: Path) -> bytes:
    model = _two_layers()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    return bytes(model.SerializeToString()).replace(b"batch", b"b\x80tch")


@_case("Transpose of nothing")
def _(_folder: Path) -> ModelProto:
    return _between(_node("Reshape", [], ["s"]), _node("Transpose", [], ["t"]), _node("Reshape", ["a", "t"], ["z"]))


@_case("QLinearMul of three")
def _(_folder: Path) -> ModelProto:
    nodes = [_node("MatMul", ["x", "w"], ["a"]), _node("QLinearMul", ["a", "w", "w"], ["y"], domain="com.microsoft")]
    model = _model(nodes, {"x": [1, 4]}, {"y": None}, w=_weight(4, 8))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


for _version in (0, -1, 1, 6, 99, 2**40):
    def _at_version(_folder: Path, version: int = _version) -> ModelProto:
        model = _two_layers()
        model.opset_import[0].version = version
        return model

    BUILDERS[f"opset {_version}"] = _at_version
for _ir in (0, 1, 3, 99, -1):
    def _at_ir(_folder: Path, ir: int = _ir) -> ModelProto:
        model = _two_layers()
        model.ir_version = ir
        return model

    BUILDERS[f"IR version {_ir}"] = _at_ir


# ---- depth and width ------------------------------------------------------------------------------------------------

_MANY = (2_000, 100_000)
"""Nodes: so many that they are dealt with, and so many that they are not."""


def _chain(count: int, op: str, *more: str, **attributes: Any) -> list[NodeProto]:
    """Nodes one after another, from a to z."""
    nodes = [_node(op, [f"t{i}" if i else "a", *more], [f"t{i + 1}"], **attributes) for i in range(count)]
    return [*nodes, _node("Relu", [f"t{count}"], ["z"])]


def _residual(count: int) -> list[NodeProto]:
    nodes = []
    for i in range(count // 2):
        read = f"t{i}" if i else "a"
        nodes += [_node("Relu", [read], [f"r{i}"]), _node("Add", [read, f"r{i}"], [f"t{i + 1}"])]
    return [*nodes, _node("Relu", [f"t{count // 2}"], ["z"])]


def _side_by_side(count: int) -> list[NodeProto]:
    nodes = [_node("Relu", ["a"], [f"t{i}"]) for i in range(count)]
    return [*nodes, _node("Sum", [f"t{i}" for i in range(count)], ["z"])]


def _sizes(count: int) -> list[NodeProto]:
    nodes = [_node("Shape", ["a"], ["t0"]), *(_node("Neg", [f"t{i}"], [f"t{i + 1}"]) for i in range(count))]
    return [*nodes, _node("Reshape", ["a", f"t{count}"], ["z"])]


def _small_layers(count: int) -> ModelProto:
    nodes = [_node("Gemm", [f"t{i}" if i else "a", f"w{i}"], [f"t{i + 1}"]) for i in range(count)]
    model = _between(*nodes, _node("Relu", [f"t{count}"], ["z"]))
    numbers = _weight(8, 8).tobytes()
    stored = (TensorProto(name=f"w{i}", dims=[8, 8], data_type=1, raw_data=numbers) for i in range(count))
    model.graph.initializer.extend(stored)
    return model


def _stored(count: int) -> ModelProto:
    model = _between(_node("Relu", ["a"], ["z"]))
    stored = (TensorProto(name=f"s{i}", dims=[1], data_type=1, float_data=[1]) for i in range(count))
    model.graph.initializer.extend(stored)
    return model


_LONG: dict[str, Callable[[int], ModelProto]] = {
    "nodes in a chain": lambda count: _between(*_chain(count, "Relu")),
    "sums in a chain": lambda count: _between(*_chain(count, "Add", "u"), u=_weight(8)),
    "matrices in a chain": lambda count: _between(*_chain(count, "MatMul", "u"), u=_weight(8, 8)),
    "small layers": _small_layers,
    "nodes of a deep residual net": lambda count: _between(*_residual(count)),
    "nodes in a chain, last first": lambda count: _between(*_chain(count, "Relu")[-2::-1], _chain(count, "Relu")[-1]),
    "nodes side by side": lambda count: _between(*_side_by_side(count)),
    "sizes computed": lambda count: _between(*_sizes(count)),
    "stored tensors": _stored,
    "nodes that nobody knows": lambda count: _between(*_chain(count, "Frobnicate", domain="nowhere")),
}
for _name, _long in _LONG.items():
    for _count in _MANY:
        BUILDERS[f"{_count:,} {_name}"] = lambda _f, long=_long, count=_count: long(count)  # type: ignore[misc]


def _nested(depth: int) -> GraphProto:
    body = helper.make_graph([_node("Relu", ["a"], ["r"])], "b", [], [helper.make_tensor_value_info("r", 1, None)])
    for _ in range(depth):
        inner = _node("If", ["yes"], ["r"], then_branch=body, else_branch=body)
        body = helper.make_graph([inner], "b", [], [helper.make_tensor_value_info("r", 1, None)])
    return body


for _depth in (6, 10):
    def _deep(_folder: Path, depth: int = _depth) -> ModelProto:
        body = _nested(depth)
        return _between(_node("If", ["yes"], ["z"], then_branch=body, else_branch=body), yes=np.array(True))

    BUILDERS[f"bodies in bodies, {_depth} deep"] = _deep


@_case("a body in a body, 200 deep")
def _(_folder: Path) -> bytes:
    """Written by hand: deeper than protobuf reads or writes."""
    body = helper.make_graph([_node("Relu", ["a"], ["r"])], "b", [], [helper.make_tensor_value_info("r", 1, None)])
    content = body.SerializeToString()
    shell = GraphProto(name="b", output=body.output).SerializeToString()
    for _ in range(200):
        attribute = AttributeProto(name="then_branch", type=AttributeProto.GRAPH).SerializeToString()
        attribute += _field(6, content)
        node = NodeProto(op_type="If", input=["yes"], output=["r"]).SerializeToString() + _field(5, attribute)
        content = shell + _field(1, node)
    model = _between(_node("Relu", ["a"], ["z"]))
    return bytes(model.SerializeToString()) + _field(7, _field(1, node))


def _field(number: int, content: bytes) -> bytes:
    """A field of a message, https://protobuf.dev/programming-guides/encoding/"""
    size, length = len(content), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def _function(name: str, *nodes: NodeProto) -> FunctionProto:
    imports = [helper.make_opsetid("", _OPSET), helper.make_opsetid("own", 1)]
    return helper.make_function("own", name, ["p"], ["q"], nodes, imports)


def _call(i: int, read: str, made: str) -> NodeProto:
    return _node(f"F{i}", [read], [made], domain="own")


_FUNCTIONS: dict[str, list[FunctionProto]] = {
    "that calls itself": [_function("F0", _node("F0", ["p"], ["q"], domain="own"))],
    "that calls back": [_function("F0", _node("F1", ["p"], ["q"], domain="own")),
                        _function("F1", _node("F0", ["p"], ["q"], domain="own"))],
    "that doubles 40 times": [
        *(_function(f"F{i}", _call(i + 1, "p", "m"), _call(i + 1, "m", "q")) for i in range(40)),
        _function("F40", _node("Relu", ["p"], ["q"]))],
    "1,000 calls deep": [
        *(_function(f"F{i}", _node(f"F{i + 1}", ["p"], ["q"], domain="own")) for i in range(1000)),
        _function("F1000", _node("Relu", ["p"], ["q"]))],
    "twice": [_function("F0", _node("Relu", ["p"], ["q"])), _function("F0", _node("Abs", ["p"], ["q"]))],
}  # fmt: skip
for _name, _functions in _FUNCTIONS.items():
    def _calling(_folder: Path, held: list[FunctionProto] = _functions) -> ModelProto:
        model = _between(_node("F0", ["a"], ["z"], domain="own"))
        model.functions.extend(held)
        return model

    BUILDERS[f"function {_name}"] = _calling
