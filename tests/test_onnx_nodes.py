"""The ONNX backend's node tests, as they are and in variants that leave something to prune (see ``node_models``).

A selection of the variants by default; ``--every-variant`` runs all of them.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import pytest
from node_checks import SEEN, check_half, check_lossless
from node_models import Variant, constant_variants, node_tests, sandwiches

Variants = Callable[[Variant], Iterator[Variant]]

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:onnx.backend")


@pytest.fixture
def some(request: pytest.FixtureRequest) -> Callable[[Variants, int], list[Variant]]:
    """All variants of each test, or so many, picked evenly."""
    everything = bool(request.config.getoption("--every-variant"))

    def pick(variants: Variants, count: int) -> list[Variant]:
        found = []
        for test in node_tests():
            every = list(variants(test))
            wanted = len(every) if everything else count
            start = zlib.crc32(test.name.encode())
            found += [every[(start + i) % len(every)] for i in range(min(wanted, len(every)))]
        return found

    return pick


def _run(name: str, capsys: pytest.CaptureFixture[str], variants: Iterable[Variant],
         *checks: Callable[[Variant], str]) -> Counter[str]:  # fmt: skip
    """Every check of every variant; all complaints at once."""
    seen: Counter[str] = Counter()
    wrong: list[str] = []
    for variant in variants:
        for check in checks:
            said = _said(check, variant)
            seen[said] += said in SEEN
            if said not in SEEN:
                wrong.append(f"{check.__name__} of {variant.name}: {said}")
    with capsys.disabled():
        print(f"\n{name}: {', '.join(f'{count} {said}' for said, count in seen.most_common())}")
    assert not wrong, "\n".join(wrong)
    return seen


def _said(check: Callable[[Variant], str], variant: Variant) -> str:
    try:
        return check(variant)
    except Exception as error:  # a crash is a complaint as others are
        return f"{type(error).__name__}: {error}"


def test_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    seen = _run("node tests as they are", capsys, node_tests(), check_lossless)
    assert seen.total() > 1500


def test_with_stored_inputs(capsys: pytest.CaptureFixture[str], some: Callable[[Variants, int], list[Variant]]) -> None:
    seen = _run("with stored inputs", capsys, some(constant_variants, 1), check_lossless, check_half)
    assert seen.total() > 2000


def test_between_channels(capsys: pytest.CaptureFixture[str], some: Callable[[Variants, int], list[Variant]]) -> None:
    seen = _run("between channels", capsys, some(sandwiches, 1), check_lossless, check_half)
    assert seen.total() > 1500
    assert seen["same outputs"] > 300
