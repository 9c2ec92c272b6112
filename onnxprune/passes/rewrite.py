"""The rewrite: slice every constant by its channels, correct the nodes that spell out sizes, drop what is empty.

The ModelProto stays the truth; graphsurgeon is the editing view. Nodes are edited there, and only what changed is
written back, so that everything pruning did not touch comes out as it went in (names, docs, order, annotations).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper
from onnx_graphsurgeon.logger import G_LOGGER

from onnxprune.bodies import FORMAL, RESULT, loops, number, restore, results_of

from onnxprune.channels import Axes, ChannelMap
from onnxprune.deferred import Deferred, Pending, can_wait, promise, row_blocks
from onnxprune.editing import Edits, NodeEditor
from onnxprune.errors import ModelError
from onnxprune.graph import Edge, attribute, constant_of, subgraphs
from onnxprune.messages import select, set_attributes, set_constant, set_sizes, with_numbers, without
from onnxprune.ops import table

__all__ = ["rewrite", "rewrite_deferred"]

G_LOGGER.severity = G_LOGGER.CRITICAL  # it writes to stdout


def rewrite(channel_map: ChannelMap, keep: NDArray[np.bool_]) -> ModelProto:
    """The model without the channels whose group is not kept (bool [groups]).

    Requires a ``keep`` that leaves every contraction of a kept output at least one input (``ChannelMap.needs``).
    Raises ModelError where a node that stays would read a tensor of which nothing is left.
    """
    if np.all(keep):
        result = ModelProto()
        result.CopyFrom(restore(channel_map.graph.model))
        return result
    return restore(_Rewriter(channel_map, keep).run())


def rewrite_deferred(channel_map: ChannelMap, keep: NDArray[np.bool_]) -> Deferred:
    """See ``rewrite``; what is kept of weights in data files is cut out of them when it is wanted."""
    model = channel_map.graph.model
    if np.all(keep) or restore(model) is not model:  # the weights of bodies have other names there
        return Deferred(rewrite(channel_map, keep))
    rewriter = _Rewriter(channel_map, keep, is_deferring=True)
    outline = rewriter.run()
    return Deferred(outline, rewriter.pending)


def take_kept(values: NDArray[np.generic], axes: Axes, keep: NDArray[np.bool_]) -> NDArray[np.generic]:
    """The part of a constant at kept channels."""
    cuts = [(a, keep[ids]) for a, ids in enumerate(axes) if ids is not None]
    for axis, kept in sorted(cuts, key=lambda cut: float(np.mean(cut[1]))):
        if not np.all(kept):
            values = np.take(values, np.flatnonzero(kept), axis=axis)
    return np.asarray(values, order="C")


def kept_blocks(values: NDArray[np.generic], axes: Axes, keep: NDArray[np.bool_]) -> Iterator[NDArray[np.generic]]:
    """``take_kept`` of some indices of the first axis at a time."""
    first, *rest = axes
    for own in row_blocks(values):
        yield take_kept(values[own], (None if first is None else first[own], *rest), keep)


@dataclass
class _Rewriter:
    """One rewrite: the view, what is inserted, and which nodes and constants changed."""

    map: ChannelMap
    keep: NDArray[np.bool_]
    is_deferring: bool = False

    def __post_init__(self) -> None:
        self.source = self.map.graph.model
        self.view = list(gs.import_onnx(_without_data(self.source)).nodes)
        names = {name for node in self.map.graph.nodes for name in (*node.input, *node.output, node.name)}
        self.edits = Edits(names | set(self.map.graph.constants) | {v.name for v in self.source.graph.input})
        self.sliced: dict[str, Callable[[], NDArray[np.generic]]] = {}  # computed when written: one at a time in memory
        self.parts: dict[str, tuple[str, Axes]] = {}  # those of them that are a part of a constant, cut along its axes
        self.pending: dict[str, Pending] = {}
        self.dims: dict[str, list[int]] = {}
        self.dropped: set[int] = set()
        self.touched: set[int] = set()
        self.loops: dict[int, bool] = {}  # owner of the markers of a loop → whether a result is wanted

    def run(self) -> ModelProto:
        self._drop_emptied()
        self._slice_constants()
        for index in range(len(self.view)):
            if index not in self.dropped:
                self._edit(index)
        for name, value in self.edits.replaced.items():
            self.sliced[name] = partial(np.asarray, value)
            self.parts.pop(name, None)
        self._drop_unused()
        self._check()
        return self._written()

    # ---- which nodes go

    def _emptied(self, axes: Axes) -> bool:
        return any(ids is not None and len(ids) > 0 and not np.any(self.keep[ids]) for ids in axes)

    def _drop_emptied(self) -> None:
        self.empty = {name for name, axes in self.map.axes.items() if self._emptied(axes)}
        for index, node in enumerate(self.map.graph.nodes):
            if node.output and all(name in self.empty or not name for name in node.output):
                self.dropped.add(index)

    def _drop_unused(self) -> None:
        """Nodes that nobody reads any more; nodes that nobody read before stay as they are."""
        graph = self.map.graph
        wanted = set(graph.outputs) | graph.captured
        for index in reversed(range(len(self.view))):
            after = self.edits.after.get(index, ())
            if index in self.dropped:
                continue
            outputs = {t.name for node in (self.view[index], *after) for t in node.outputs}
            unread_before = not any(n in graph.consumers or n in wanted for n in graph.nodes[index].output)
            if self._is_part_of_loop(index, wanted) or outputs & wanted or unread_before:
                for node in (self.view[index], *after, *self.edits.before.get(index, ())):
                    wanted |= {t.name for t in node.inputs}
            else:
                self.dropped.add(index)
        self.wanted = wanted

    def _is_part_of_loop(self, index: int, wanted: set[str]) -> bool:
        """Whether a node is an input or output of the body of a loop of which some output is wanted, or never was."""
        node = self.map.graph.nodes[index]
        if not loops(node) or node.domain not in (FORMAL, RESULT):
            return False
        owner = number(node, "owner")
        if owner not in self.loops:  # its last result, the first one met
            block = results_of(self.map.graph.nodes, index)
            made = [name for k in block for name in self.map.graph.nodes[k].output]
            self.loops[owner] = any(name in wanted or name not in self.map.graph.consumers for name in made)
        return self.loops[owner]

    def _check(self) -> None:
        for index, node in enumerate(self.view):
            if index not in self.dropped:
                for tensor in node.inputs:
                    if tensor.name in self.empty:
                        raise ModelError(
                            f"nothing is left of '{tensor.name}', which {node.op} '{node.name}' reads; "
                            "leave some of its channels (--keep) or lower the sparsity"
                        )

    # ---- constants

    def _slice_constants(self) -> None:
        for name, edges in self.map.constant_uses().items():
            alive = [edge for edge in edges if edge[0] not in self.dropped]
            cut = [edge for edge in alive if self._is_cut(edge)]
            if not cut:
                continue
            everywhere = len(cut) == sum(e[0] not in self.dropped for e in self.map.graph.consumers[name])
            for group in _alike([(edge, self._kept(edge)) for edge in cut]):
                is_whole = everywhere and len(group) == len(cut)
                self._add_part(name if is_whole else self._own(name, group), name, self.map.uses[group[0]])

    def _add_part(self, name: str, source: str, axes: Axes) -> None:
        self.parts[name] = source, axes
        self.sliced[name] = lambda: take_kept(self.map.graph.values(source), axes, self.keep)

    def _own(self, name: str, edges: list[Edge]) -> str:
        """Uses that keep different channels read a constant of their own; its name."""
        own = self.edits.name(name)
        for index, k in edges:
            self.view[index].inputs[k] = gs.Variable(own)
            self.touched.add(index)
        return own

    def _is_cut(self, edge: Edge) -> bool:
        return any(ids is not None and not np.all(self.keep[ids]) for ids in self.map.uses[edge])

    def _kept(self, edge: Edge) -> tuple[bytes, ...]:
        return tuple(b"" if ids is None else self.keep[ids].tobytes() for ids in self.map.uses[edge])

    # ---- nodes

    def _edit(self, index: int) -> None:
        node = self.map.graph.nodes[index]
        if node.op_type == "Shape":
            self._restore_shape(index, node)
            return
        cut = [self.map.axes.get(name, ()) for name in (*node.input, *node.output)]
        cut += [self.map.uses.get((index, k), ()) for k in range(len(node.input))]
        if not any(ids is not None and not np.all(self.keep[ids]) for axes in cut for ids in axes):
            return
        if index in self.map.shuffles:
            self._permute(index)
            return
        rule = table.rule_of(node.op_type, node.domain)
        if rule is not None and rule.resize is not None:
            rule.resize(NodeEditor(self.map, self.keep, self.edits, index, self.view[index]))
            self.touched.add(index)

    def _restore_shape(self, index: int, node: NodeProto) -> None:
        """Arithmetic on sizes goes on with the original ones; what it ends in is overridden where channels left."""
        axes = self.map.axes.get(node.input[0], ())
        cut = {
            a: (int(np.count_nonzero(self.keep[ids])), len(ids))
            for a, ids in enumerate(axes)
            if ids is not None and not np.all(self.keep[ids])
        }
        if not cut:
            return
        start = attribute(node, "start")
        first = (start if isinstance(start, int) else 0) % max(len(axes), 1)
        length = self.map.shapes.of[node.output[0]][0]
        entries = {a - first: size for a, size in cut.items() if 0 <= a - first < length}
        if entries and self._reads_entries(node.output[0], set(entries)):
            NodeEditor(self.map, self.keep, self.edits, index, self.view[index]).restore_output(entries, length)
            self.touched.add(index)

    def _reads_entries(self, name: str, entries: set[int]) -> bool:
        """Whether anyone reads one of these entries of a shape; most exports pick out the batch or the height."""
        length = self.map.shapes.of[name][0]
        for index, _ in self.map.graph.consumers.get(name, []):
            node = self.map.graph.nodes[index]
            value = self.map.shapes.values.get(node.input[1]) if node.op_type == "Gather" else None
            if value is None or {int(v) % length for v in np.atleast_1d(value)} & entries:
                return True
        return name in self.map.graph.captured or name in self.map.graph.outputs

    def _permute(self, index: int) -> None:
        """A channel shuffle of which channels left becomes a Gather of the others."""
        shuffle = self.map.shuffles[index]
        ids = self.map.axes[shuffle.source][shuffle.axis]
        kept = np.ones(len(shuffle.order), np.bool_) if ids is None else self.keep[ids]
        order = (np.cumsum(kept) - 1)[shuffle.order[kept[shuffle.order]]]
        indices = self.edits.name(f"{self.view[index].outputs[0].name}_order")
        self.sliced[indices] = lambda: order.astype(np.int64)
        node = self.view[index]
        node.op, node.attrs = "Gather", {"axis": shuffle.axis}
        node.inputs = [gs.Variable(shuffle.source), gs.Variable(indices)]
        self.touched.add(index)

    # ---- writing back

    def _written(self) -> ModelProto:
        result = without(self.source, "graph")
        result.graph.CopyFrom(select(self.source.graph, ("name", "doc_string", "sparse_initializer", "metadata_props")))
        graph, source = result.graph, self.source.graph
        for index, proto in enumerate(source.node):
            if index not in self.dropped:
                self._write_node(graph, index, proto)
        read = {name for node in graph.node for name in _read_names(node)} | set(self.map.graph.outputs)
        unread_before = set(self.map.graph.consumers) | self.map.graph.captured | set(self.map.graph.outputs)
        for tensor in source.initializer:
            if tensor.name in read or tensor.name not in unread_before:
                if tensor.name not in self.sliced:
                    graph.initializer.append(tensor)
                    continue
                graph.initializer.append(self._sliced_initializer(tensor))
        held = self.map.graph.constants
        new = [name for name in self.sliced if name not in held and name in read]
        added = [self._sliced_initializer(TensorProto(name=name)) for name in new]
        self._write_values(graph, read)
        _add_constants(result, [*added, *self._new_constants(graph)])
        return result

    def _sliced_tensor(self, held: TensorProto, name: str = "") -> TensorProto:
        """A constant with what is left of its numbers. ``name``: of the tensor, if the constant itself has another."""
        tensor = with_numbers(held, self.sliced[name or held.name]())
        self.dims[name or held.name] = list(tensor.dims)
        return tensor

    def _sliced_initializer(self, held: TensorProto) -> TensorProto:
        """The same of an initializer, whose numbers may be cut out later."""
        source, axes = self.parts.get(held.name, ("", ()))
        stored = self.map.graph.constants.get(source)
        if not self.is_deferring or stored is None or not can_wait(stored):
            return self._sliced_tensor(held)
        kept = (n if ids is None else np.count_nonzero(self.keep[ids]) for n, ids in zip(stored.dims, axes, strict=True))
        self.dims[held.name] = [int(n) for n in kept]
        self.pending[held.name] = lambda: kept_blocks(self.map.graph.values(source), axes, self.keep)
        declared = held if held.data_type else TensorProto(data_type=stored.data_type)
        return promise(declared, held.name, self.dims[held.name])

    def _write_node(self, graph: GraphProto, index: int, proto: NodeProto) -> None:
        for node in self.edits.before.get(index, ()):
            graph.node.append(_new_node(node))
        held = constant_of(proto)
        if held is not None and proto.output[0] in self.sliced:
            graph.node.append(proto)
            set_constant(graph.node[-1], self._sliced_tensor(held, proto.output[0]))
        elif index in self.touched:
            graph.node.append(_edited(proto, self.view[index]))
        else:
            graph.node.append(proto)
        for node in self.edits.after.get(index, ()):
            graph.node.append(_new_node(node))

    def _new_constants(self, graph: GraphProto) -> Iterator[TensorProto]:
        """Constants that edits made."""
        seen: set[str] = set()
        alive = [self.view[i] for i in range(len(self.view)) if i in self.touched and i not in self.dropped]
        inserted = [
            n
            for place in (self.edits.before, self.edits.after)
            for i in sorted(place)
            for n in place[i]
            if i not in self.dropped
        ]
        for node in (*alive, *inserted):
            for tensor in node.inputs:
                is_new = isinstance(tensor, gs.Constant) and tensor.name not in self.map.graph.constants
                if is_new and tensor.name not in seen:
                    seen.add(tensor.name)
                    yield numpy_helper.from_array(np.asarray(tensor.values), tensor.name)

    def _write_values(self, graph: GraphProto, read: set[str]) -> None:
        """Declared shapes follow; declarations of tensors that are gone go too."""
        source = self.source.graph
        made = {name for node in graph.node for name in node.output}
        feeds = set(self.map.graph.inputs)
        stored = {tensor.name: tensor for tensor in graph.initializer}
        for value in source.input:
            if value.name in feeds or value.name in stored:
                graph.input.append(value)
                if value.name in self.dims:
                    set_sizes(graph.input[-1], self.dims[value.name])
        for value in source.value_info:
            if value.name in made or value.name in stored:
                graph.value_info.append(value)
                self._cut_dims(graph.value_info[-1])
        graph.output.extend(source.output)
        kept = made | set(stored) | feeds
        graph.quantization_annotation.extend(q for q in source.quantization_annotation if q.tensor_name in kept)

    def _cut_dims(self, value: ValueInfoProto) -> None:
        if value.name in self.dims:
            set_sizes(value, self.dims[value.name])
        for axis, ids in enumerate(self.map.axes.get(value.name, ())):
            dims = value.type.tensor_type.shape.dim
            if ids is not None and not np.all(self.keep[ids]) and axis < len(dims) and dims[axis].HasField("dim_value"):
                dims[axis].dim_value = int(np.count_nonzero(self.keep[ids]))


def _add_constants(model: ModelProto, tensors: Sequence[TensorProto]) -> None:
    """Before IR 4 an initializer has to be listed among the inputs too; nobody has to feed it."""
    model.graph.initializer.extend(tensors)
    if model.ir_version < 4:
        model.graph.input.extend(onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in tensors)


def _alike(edges: Iterable[tuple[Edge, tuple[bytes, ...]]]) -> list[list[Edge]]:
    """Uses that keep the same channels, together."""
    groups: dict[tuple[bytes, ...], list[Edge]] = {}
    for edge, kept in edges:
        groups.setdefault(kept, []).append(edge)
    return list(groups.values())


def _read_names(node: NodeProto) -> Iterator[str]:
    """Names a node reads, by itself or in its bodies."""
    yield from node.input
    for body in subgraphs(node):
        yield from (value.name for value in body.output)
        for inner in body.node:
            yield from _read_names(inner)


def _without_data(model: ModelProto) -> ModelProto:
    """The nodes alone, for the editing view: constants are edited as tensors, bodies are never edited."""
    light = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    light.graph.name = model.graph.name
    for node in model.graph.node:
        added = light.graph.node.add(op_type=node.op_type, name=node.name, domain=node.domain)
        added.input.extend(node.input)
        added.output.extend(node.output)
        added.attribute.extend(held for held in node.attribute if _is_readable(held))
    return light


def _is_readable(held: AttributeProto) -> bool:
    """Whether the editing view takes an attribute: numbers, and text that is text."""
    if held.type == AttributeProto.STRING:
        return bool(held.s.decode(errors="ignore").encode() == held.s)
    return held.type in (AttributeProto.INT, AttributeProto.INTS, AttributeProto.FLOAT)


def _new_node(node: gs.Node) -> NodeProto:
    return onnx.helper.make_node(
        node.op, [t.name for t in node.inputs], [t.name for t in node.outputs], node.name, **node.attrs
    )


def _edited(proto: NodeProto, node: gs.Node) -> NodeProto:
    """The proto with the view's operator, inputs, outputs and changed attributes."""
    result = without(proto, "attribute")
    result.op_type = node.op
    result.input[:] = [tensor.name for tensor in node.inputs]
    result.output[:] = [tensor.name for tensor in node.outputs]
    old = {held.name: held for held in proto.attribute} if node.op == proto.op_type else {}
    for name, held in old.items():
        if not _is_editable(held) or name in node.attrs:
            result.attribute.append(held)
    for name, value in node.attrs.items():
        if name not in old:
            result.attribute.append(onnx.helper.make_attribute(name, value))
        elif _is_editable(old[name]) and onnx.helper.get_attribute_value(old[name]) != value:
            set_attributes(result, {name: value})
    return result


def _is_editable(held: AttributeProto) -> bool:
    return held.type in (AttributeProto.INT, AttributeProto.INTS, AttributeProto.FLOAT)
