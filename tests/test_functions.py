"""Model-local functions: channels run through their calls, and where nothing leaves they stay."""

from __future__ import annotations

import time

import numpy as np
import onnx
import pytest
from exactness import assert_exact, model_of
from onnx import ModelProto, parser
from witness import stored_weights

import onnxprune
from onnxprune.bodies import laid_out
from onnxprune.graph import Graph
from onnxprune.ops import build_map

_HEAD = '<ir_version: 9, opset_import: ["" : 17, "local" : 1]> g (float[2,6] x) => (float[2,4] y)'
_DOMAIN = '<domain: "local", opset_import: ["" : 17, "local" : 1]>'


def calling(main: str, *functions: str, **weights: object) -> ModelProto:
    model = parser.parse_model("\n".join([f"{_HEAD} {{ {main} }}", *(f"{_DOMAIN} {f}" for f in functions)]))
    stored = model_of("(float[1] x) => (float[1] y) { y = Relu(x) }", **weights)
    model.graph.initializer.extend(stored.graph.initializer)
    return model


def constant(name: str, *shape: int) -> str:
    """A Constant node of a function, as ONNX text."""
    numbers = np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32).ravel()
    sizes = ",".join(map(str, shape))
    return f"{name} = Constant <value = float[{sizes}] {{{', '.join(f'{n:.4f}' for n in numbers)}}}> ()"


_W, _V = (6, 8), (8, 4)
PARAMETER = calling(
    "a = local.linear(x, w) b = local.act <slope = 0.1> (a) y = local.linear(b, v)",
    "linear (x, w) => (y) { y = MatMul(x, w) }",
    "act <slope> (x) => (y) { y = LeakyRelu <alpha: float = @slope> (x) }",
    w=_W, v=_V,
)  # fmt: skip
STORED_INSIDE = calling("a = local.first(x) y = MatMul(a, v)",
                        f"first (x) => (y) {{ {constant('w', *_W)} h = MatMul(x, w) y = Relu(h) }}", v=_V)  # fmt: skip
NESTED = calling(
    "a = local.block(x) y = MatMul(a, v)",
    f"block (x) => (y) {{ {constant('w', *_W)} h = MatMul(x, w) y = local.act(h) }}",
    "act (x) => (y) { y = Tanh(x) }",
    v=_V,
)
CALLED_TWICE = calling(
    "h = MatMul(x, w) a = local.mix(h) b = local.mix(a) y = MatMul(b, v)",
    f"mix (x) => (y) {{ {constant('u', 8, 8)} m = MatMul(x, u) y = Relu(m) }}",
    w=_W, v=_V,
)  # fmt: skip
IN_A_BODY = calling(
    "h = MatMul(x, w) s = ReduceSum <keepdims = 0> (h) n = Constant <value = float {0}> () c = Greater(s, n) "
    "a = If(c) <then_branch = t () => (float[2,8] p) { p = local.mix(h) }, "
    "else_branch = e () => (float[2,8] q) { q = Neg(h) }> y = MatMul(a, v)",
    f"mix (x) => (y) {{ {constant('u', 8, 8)} m = MatMul(x, u) y = Relu(m) }}",
    w=_W, v=_V,
)  # fmt: skip
UNUSED = calling("a = local.act(x) b = MatMul(a, w) y = MatMul(b, v)", "act (x) => (y) { y = Tanh(x) }",
                 "spare (x) => (y) { y = Relu(x) }", w=_W, v=_V)  # fmt: skip

_MODELS = {
    "parameter": PARAMETER,
    "stored inside": STORED_INSIDE,
    "nested": NESTED,
    "called twice": CALLED_TWICE,
    "in a body": IN_A_BODY,
    "unused": UNUSED,
}


@pytest.mark.parametrize("name", _MODELS)
def test_pruned_equals_masked(name: str) -> None:
    onnx.checker.check_model(_MODELS[name], full_check=True)
    outcomes = assert_exact(_MODELS[name], seeds=range(4))
    assert any(outcome.removed for outcome in outcomes)


@pytest.mark.parametrize("name", _MODELS)
def test_half_of_what_the_model_stored_leaves(name: str) -> None:
    model = _MODELS[name]
    result = onnxprune.prune(model, sparsity=0.5, align="none")
    assert result.verification is not None
    assert result.verification.ok
    assert result.before.weights == stored_weights(model)
    assert stored_weights(result.model) <= 0.5 * stored_weights(model)
    onnx.checker.check_model(result.model, full_check=True)


@pytest.mark.parametrize("name", _MODELS)
def test_where_nothing_leaves_the_functions_stay(name: str) -> None:
    assert onnxprune.prune(_MODELS[name]).model == _MODELS[name]


def test_a_function_that_nobody_calls_stays() -> None:
    result = onnxprune.prune(UNUSED, sparsity=0.5, align="none")
    assert [function.name for function in result.model.functions] == ["spare"]


def test_what_is_stored_in_a_function_is_stored_once_for_all_calls() -> None:
    assert stored_weights(laid_out(CALLED_TWICE)) == stored_weights(CALLED_TWICE)


def test_a_function_in_another_operator_set_is_left_alone() -> None:
    model = calling("a = MatMul(x, w) b = local.act(a) y = MatMul(b, v)", "act (x) => (y) { y = Softmax(x) }",
                    w=_W, v=_V)  # fmt: skip
    model.functions[0].opset_import[0].version = 11
    channel_map = build_map(Graph(laid_out(model)))
    assert not len(channel_map.free)
    assert any("could not be inlined" in found.reason for found in channel_map.reasons.values())


@pytest.mark.parametrize("calls", ["y = local.f(x)", "h = Relu(x) y = local.g(h)"])
def test_functions_in_a_circle_are_left_alone(calls: str) -> None:
    model = calling("a = MatMul(x, w) b = local.f(a) y = MatMul(b, v)", f"f (x) => (y) {{ {calls} }}",
                    "g (x) => (y) { y = local.f(x) }", w=_W, v=_V)  # fmt: skip
    assert laid_out(model) is model
    assert not len(build_map(Graph(model)).free)


def test_functions_that_would_explode_are_left_alone_at_once() -> None:
    levels = [f"f{i} (x) => (y) {{ a = local.f{i + 1}(x) y = local.f{i + 1}(a) }}" for i in range(40)]
    model = calling("a = MatMul(x, w) b = local.f0(a) y = MatMul(b, v)", *levels, "f40 (x) => (y) { y = Relu(x) }",
                    w=_W, v=_V)  # fmt: skip
    begin = time.process_time()
    assert laid_out(model) is model
    assert not len(build_map(Graph(model)).free)
    assert time.process_time() - begin < 5
