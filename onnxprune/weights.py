"""The numbers of a weight, stored or computed from stored constants (DequantizeLinear, Cast, Transpose)."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.reference
from numpy.typing import NDArray

from onnxprune.bodies import is_marker
from onnxprune.errors import ModelError
from onnxprune.graph import Graph

__all__ = ["weight_values"]


def weight_values(graph: Graph, name: str) -> NDArray[np.generic]:
    """The value of a tensor that depends neither on the model's inputs nor on what bodies of control flow do.

    Raises: KeyError where it does; ModelError where ONNX Runtime cannot compute it.
    """
    if name in graph.constants:
        return graph.values(name)
    nodes, leaves, pending = [], set(), [name]
    while pending:
        wanted = pending.pop()
        if not wanted or wanted in leaves:
            continue
        if wanted in graph.constants:
            leaves.add(wanted)
        elif graph.producer[wanted] not in nodes:
            nodes.append(graph.producer[wanted])
            if is_marker(graph.nodes[nodes[-1]]):
                raise KeyError(wanted)
            pending += graph.nodes[nodes[-1]].input
    chain = onnx.helper.make_graph(
        [graph.nodes[i] for i in sorted(nodes)],
        "weight",
        [],
        [onnx.ValueInfoProto(name=name)],
        [onnx.numpy_helper.from_array(graph.values(leaf), leaf) for leaf in sorted(leaves)],
    )
    return _run(onnx.helper.make_model(chain, ir_version=8, opset_imports=list(graph.model.opset_import)), name)


def _run(model: onnx.ModelProto, name: str) -> NDArray[np.generic]:
    """ONNX Runtime on a handful of nodes, or ONNX's reference evaluator, which lacks older operator versions but has
    the types that the runtime has no kernels for (bfloat16)."""
    import onnxruntime as ort  # slow to import, and most models never need it here

    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, {})[0])
    except Exception as error:
        try:
            found: list[object] = onnx.reference.ReferenceEvaluator(model).run([name], {})  # type: ignore[assignment]
            return np.asarray(found[0])
        except Exception:
            raise ModelError(f"weight '{name}' cannot be computed: {str(error).splitlines()[0]}") from error
