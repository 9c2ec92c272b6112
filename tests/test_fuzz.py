"""A minute of ``fuzz.py``: every generator through every check; what the generators grow, and that the run would tell.

``ONNXPRUNE_FIRST_SEED`` moves the slice to other models.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest
from exactness import Outcome, assert_exact
from fuzz import GENERATORS, Tally, fuzz
from onnx import ModelProto

from onnxprune.bodies import flatten
from onnxprune.ops.table import RULES

FIRST = int(os.environ.get("ONNXPRUNE_FIRST_SEED", "3000"))  # the tests of single contracts look at those before
GRAPHS = 208  # a part: every generator meets each of its checks


@pytest.mark.parametrize("part", range(4))
def test_slice(part: int) -> None:
    said: list[str] = []
    first = FIRST + part * GRAPHS
    tally = fuzz(range(first, first + GRAPHS), said.append)
    again = "; ".join(f"python tests/fuzz.py --graphs 1 --first {seed}" for seed, *_ in tally.failed)
    assert not tally.failed, "\n".join([again, *said])
    assert set(tally.seen) == {(name, check) for name in GENERATORS for check in _checks(name)}
    assert _share(tally, tally.smaller) > 0.5
    assert _share(tally, tally.undefined) < 0.05


def _checks(name: str) -> list[str]:
    return ["masked", *(check.__name__ for check in GENERATORS[name][2])]


def _share(tally: Tally, part: Counter[tuple[str, str]]) -> float:
    return part.total() / tally.seen.total()


def test_failure_names_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: ModelProto, share: float, seeds: list[int]) -> list[Outcome]:
        assert seeds != [3001], "differs"
        return assert_exact(model, share, seeds)

    monkeypatch.setattr("fuzz.assert_exact", wrong)
    said: list[str] = []
    tally = fuzz(range(3000, 3003), said.append)
    assert [seed for seed, _, check in tally.failed] == [3001]
    assert any("seed 3001" in text and "differs" in text for text in said)


# Rows that no random model has.
NOT_GROWN = {
    "Bernoulli": "draws numbers", "RandomNormalLike": "draws numbers", "RandomUniformLike": "draws numbers",
    "Crop": "has no schema: the checker refuses it", "SimplifiedLayerNormalization": "has no schema",
    "DeformConv": "ONNX Runtime does not have it on the CPU",
}  # fmt: skip


def test_every_row_of_the_table_is_grown() -> None:
    """A new operator needs a step in a generator, or a reason here."""
    seen = {
        node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        for make, count, _ in GENERATORS.values()
        for seed in range(400 * count)
        for node in flatten(make(seed)).graph.node
    }
    assert set(RULES) - seen == set(NOT_GROWN)
