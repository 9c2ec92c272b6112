"""The main job: model in, smaller model out, every step a plain value.

load → channel map → (dead channels) → scores → selection → plan → rewrite → verify
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.alignment import Alignment, parse_alignment
from onnxprune.bodies import laid_out, restore
from onnxprune.calibration import target_of
from onnxprune.channels import ChannelMap
from onnxprune.consistency import assert_consistent
from onnxprune.deferred import Deferred
from onnxprune.errors import UnreachableError, UsageError, VerificationError
from onnxprune.files.staging import scratch_folder
from onnxprune.footprint import check_footprint, check_number_of_nodes
from onnxprune.graph import Graph, node_name
from onnxprune.inputs import Shapes
from onnxprune.kernel_budget import Budget, Connectivity, Fitted, connectivity, within_budget
from onnxprune.layers import Census, Layer, census, layers, what_remains
from onnxprune.measure import count_weights
from onnxprune.model_io import LoadedModel, check_unchanged, loaded, save
from onnxprune.ops import build_map
from onnxprune.passes.channel_graph import EdgeMask
from onnxprune.passes.cost import MEASURES, Measure, cost_of
from onnxprune.passes.dead_widths import worth_keeping
from onnxprune.passes.flow import Blocks
from onnxprune.passes.fold import Dead, dead_groups, fold, nonzero_slices, same_channels, signal_blocks
from onnxprune.passes.kernel_scores import KERNEL_METHODS
from onnxprune.passes.kernel_slices import Kernels, cut_kernels, kernels_of
from onnxprune.passes.masked import masked_deferred
from onnxprune.passes.narrow import Narrowed, Restructure, can_narrow, narrow
from onnxprune.passes.rewrite import rewrite, rewrite_deferred
from onnxprune.passes.scores import METHODS
from onnxprune.passes.select import reachable, reachable_each, round_up, select
from onnxprune.plan import KernelCut, Plan, keep_of, kernel_cuts, mask_of, plan_of
from onnxprune.runtime import Provider
from onnxprune.verify import Verification, rounding, squashed_tensors, verify

__all__ = ["Options", "Result", "Sizes", "map_channels", "method_names", "prune", "reach", "sizes"]

_IN_MEMORY = 1_500_000_000  # bytes of weights up to which a model is handed to ONNX Runtime as a message (limit: 2 GB)
_LEAST_GRID, _LARGEST_GRID = 2, 1024  # points per axis: from no frequency but 0 and the highest to far beyond need
_ROUNDING = 4.0  # times what the runtime itself rounds that still counts as rounding

Progress = Callable[[str], None]
BoolArray = NDArray[np.bool_]


_METHODS: Mapping[str, Mapping[str, object]] = {"channel": METHODS, "kernel": KERNEL_METHODS}
"""Granularity → the methods that rank such things."""


def method_names() -> tuple[str, ...]:
    """Every method, at whatever granularity."""
    return tuple(dict.fromkeys(name for methods in _METHODS.values() for name in methods))


@dataclass(frozen=True)
class Options:
    """What a user asks for; the fields are the options of the command line.

    ``sparsity`` in [0, 1): share of ``measure`` to remove; None: only what provably does not matter.
    ``keep``: patterns of node and tensor names whose channels are left alone.
    ``align``: None is ``auto`` with a sparsity; in lossless mode, dead channels stay only where it is faster.
    ``restructure``: whether layers read only the channels they have kernels for: where it pays, always or never.
    ``norm_grid``: frequencies per axis that operator norms look at; None: as many as keep the error below 1 %.
    """

    sparsity: float | None = None
    measure: Measure = "weights"
    method: str = "lean"
    granularity: Literal["channel", "kernel"] = "channel"
    keep: tuple[str, ...] = ()
    align: str | None = None
    allow_renorm: bool = False
    seed: int = 0
    provider: Provider = "auto"
    restructure: Restructure = "auto"
    norm_grid: int | None = None

    def check(self) -> None:
        """Raises UsageError for values out of range."""
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise UsageError(f"sparsity is {self.sparsity:g}, expected a share to remove, at least 0 and below 1")
        if self.measure not in MEASURES:
            raise UsageError(f"measure is '{self.measure}', expected one of {', '.join(MEASURES)}")
        if self.restructure not in get_args(Restructure):
            raise UsageError(f"restructure is '{self.restructure}', expected one of {', '.join(get_args(Restructure))}")
        if self.norm_grid is not None and not _LEAST_GRID <= self.norm_grid <= _LARGEST_GRID:
            raise UsageError(
                f"norm grid is {self.norm_grid}, expected {_LEAST_GRID} to {_LARGEST_GRID} points per axis; "
                "without it, as many as keep the error of a norm below 1 %"
            )
        if self.granularity not in _METHODS:
            raise UsageError(f"granularity is '{self.granularity}', expected one of {', '.join(_METHODS)}")
        if not any(self.method in methods for methods in _METHODS.values()):
            raise UsageError(f"method is '{self.method}', expected one of {', '.join(method_names())}")
        if self.method not in _METHODS[self.granularity]:
            there = next(name for name, methods in _METHODS.items() if self.method in methods)
            raise UsageError(f"method '{self.method}' ranks no {self.granularity}s; use it with --granularity {there}")


@dataclass(frozen=True)
class Sizes:
    """What a model holds: ``weights`` (see ``onnxprune.measure``), multiply-accumulates of one run, kernel slices.

    At kernel granularity, ``kernels`` are the kernel slices of all contractions that are not all zero.
    """

    weights: int
    macs: float
    kernels: float


@dataclass(frozen=True)
class Result:
    """What ``prune`` made.

    ``made``: the pruned model, of which large weights may not be cut out yet. ``plan``: what left.
    ``before``/``after``: its sizes. ``layers``: width before and after, layer by layer. ``census``: what is frozen, by
    cause. ``renormalised``: normalisations computed over fewer channels.
    ``connected``: at kernel granularity, how much of the choice was connected; ``cut``: the original without it.
    ``narrowed``: output of a layer → how many channels it reads, where that are fewer than there are.
    ``blocks``: output of a layer → of how many smaller ones it consists now.
    ``verification``: pruned against its reference, None if not asked for. ``seconds``: time by step.
    ``unpruned``: the model as it came. ``final``: the channel map of the pruned model, where layers were narrowed.
    """

    made: Deferred = field(repr=False)
    plan: Plan
    before: Sizes
    after: Sizes
    layers: tuple[Layer, ...]
    census: Census
    renormalised: tuple[str, ...]
    seconds: Mapping[str, float]
    unpruned: ModelProto = field(repr=False)
    original: ChannelMap = field(repr=False)
    channel_map: ChannelMap = field(repr=False)
    keep: BoolArray = field(repr=False)
    connected: Connectivity | None = None
    cut: ModelProto | None = field(default=None, repr=False)
    source: LoadedModel | None = field(default=None, repr=False)
    verification: Verification | None = None
    narrowed: Mapping[str, int] = field(default_factory=dict)
    blocks: Mapping[str, int] = field(default_factory=dict)
    final: ChannelMap | None = field(default=None, repr=False)

    @property
    def folder(self) -> Path | None:
        """Where the external data of the original lies."""
        return self.original.graph.folder

    @property
    def model(self) -> ModelProto:
        """The pruned model, whole and in memory. Raises ModelError where data files of the original were changed."""
        return self._whole(self.made)

    def _whole(self, made: Deferred) -> ModelProto:
        if not made.is_whole:
            check_unchanged(self.source)
        return made.model

    @property
    def masked(self) -> ModelProto:
        """The masked reference: the original with the planned weights set to zero, whole and in memory."""
        return self._whole(self.made_masked)

    @cached_property
    def made_masked(self) -> Deferred:
        """The same, of which large weights may not be set to zero yet."""
        return Deferred(self.cut) if self.cut is not None else masked_deferred(self.channel_map, self.keep)

    @property
    def reference(self) -> ModelProto:
        """What the pruned model must agree with: the masked reference, or in lossless mode the original."""
        return self._whole(self.made_reference)

    @property
    def made_reference(self) -> Deferred:
        """The same, of which large weights may not be set to zero yet."""
        return Deferred(self.unpruned) if self.plan.sparsity is None else self.made_masked

    def save(self, out: str | Path, check: Callable[[Path], None] | None = None) -> list[Path]:
        """Write the pruned model, whole or not at all; see ``onnxprune.model_io.save``."""
        return save(self.made.outline, out, source=self.source, check=check, pending=self.made.pending)

    def save_masked(self, out: str | Path, check: Callable[[Path], None] | None = None) -> list[Path]:
        """Write the masked reference, whole or not at all; see ``onnxprune.model_io.save``."""
        made = self.made_masked
        return save(made.outline, out, source=self.source, check=check, pending=made.pending)

    def verified(
        self,
        candidate: ModelProto | Path | None = None,
        *,
        provider: Provider = "auto",
        shapes: Shapes | None = None,
        seed: int = 0,
    ) -> Result:
        """Run the reference and the pruned model (or the file it was written to) on random inputs and compare.

        A model that computes normalisations over fewer channels is expected to differ: that is only reported.
        A difference beyond the tolerance is compared with what the runtime itself rounds (the reference with and
        without its graph optimisations) before it counts.

        Raises: VerificationError where they do not agree; ModelError where the reference does not run.
        """
        found = _verified(self, self.made if candidate is None else candidate, provider, shapes, seed)
        return replace(self, verification=found)


def prune(
    model: ModelProto | LoadedModel | str | Path,
    *,
    sparsity: float | None = None,
    measure: Measure = "weights",
    method: str = "lean",
    granularity: Literal["channel", "kernel"] = "channel",
    keep: Sequence[str] = (),
    align: str | None = None,
    allow_renorm: bool = False,
    restructure: Restructure = "auto",
    norm_grid: int | None = None,
    seed: int = 0,
    plan: Plan | None = None,
    check: bool = True,
    provider: Provider = "auto",
    shapes: Shapes | None = None,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Result:
    """Remove channels, or kernel slices and what is dead without them, from a model.

    Args:
        model: the model or its file; it is not changed.
        sparsity: share of ``measure`` to remove, in [0, 1); None removes only what provably does not matter.
        measure: ``weights`` (elements of stored constants of rank ≥ 2), ``macs`` or ``kernels``.
        method: the score: ``lean``, ``magnitude`` or ``random``; for kernel slices also ``lean-anchored``,
            ``topology``, ``l1`` or ``sv``.
        granularity: what is chosen: ``channel``, or ``kernel`` (slices of weights between two channels).
        keep: patterns of node or tensor names whose channels are left alone.
        align: ``auto``, ``none`` or a step that kept widths fall on; None is ``auto`` with a sparsity. In lossless
            mode, ``auto`` leaves dead channels where removing them would leave an odd width, None only where that
            would be slower, and ``none`` nowhere.
        allow_renorm: also prune channels that a normalisation runs over (not exact; without a sparsity, ignored).
        restructure: let layers read only the channels they have kernels for: ``auto`` where it pays, ``always``
            wherever it can be done, ``never``.
        norm_grid: frequencies per axis that operator norms (of ``lean``, ``lean-anchored``, ``sv``) look at; None: as
            many as keep the error below 1 %.
        seed: of ``random`` and of the inputs that verification feeds.
        plan: apply this instead of choosing.
        check: run the reference and the pruned model and compare.
        provider: where verification runs.
        shapes: sizes for open input dimensions, where verification needs them.
        folder: where the external data of a model in memory lies.
        progress: told what is being done.

    Raises:
        UsageError: an option is out of range, or the plan does not fit the model.
        UnreachableError: the sparsity cannot be reached; says how far one can go and what blocks it.
        VerificationError: the pruned model contradicts itself, or does not agree with its reference; never seen on
            purpose.
        ModelError: the model cannot be read or run.

    Example:
        >>> result = onnxprune.prune("model.onnx", sparsity=0.9)  # doctest: +SKIP
        >>> result.save("model.small.onnx")  # doctest: +SKIP
    """
    source = loaded(model, folder)
    proto, folder = source.proto, source.folder
    options = Options(sparsity, measure, method, granularity, tuple(keep), align, allow_renorm, seed, provider,
                      restructure, norm_grid)  # fmt: skip
    options = options if plan is None else _as_planned(options, plan)
    if options.sparsity is None:  # a normalisation over fewer channels is not what the original computes
        options = replace(options, allow_renorm=False)
    options.check()
    clock = _Clock(progress or (lambda _: None))
    with clock("reading the channels"):
        original = map_channels(proto, options, folder)
    whole, cuts, connected = original, tuple[KernelCut, ...](), None
    if options.granularity == "kernel" and options.sparsity is not None:
        with clock("selecting kernel slices"):
            whole, cuts, connected = _cut(original, options, plan)
    with clock("looking for dead channels"):
        channel_map, dead, nonzero = _folded(whole, options, plan)
    chosen, plan = _choose(channel_map, dead, signal_blocks(nonzero), options, plan, original, clock)
    with clock("rewriting"):
        same = bool(np.all(chosen)) and channel_map is original
        made = Deferred(_copied(proto)) if same else rewrite_deferred(channel_map, chosen)
    with clock("narrowing"):
        narrowed, final = _narrowed(made, channel_map, chosen, nonzero, options, original)
    after = _sizes_kept(channel_map, chosen, made.outline) if final is None else sizes(final)
    result = Result(
        made=Deferred(narrowed.model) if narrowed.changed else made,
        plan=replace(plan, kernels=cuts),
        before=sizes(original) if whole is original else _kernel_sizes(original),
        after=after if whole is original else _kernel_sizes(final or _mapped(made.model, folder)),
        layers=layers(channel_map, chosen, narrowed.consumers),
        census=census(original),
        renormalised=tuple(name for name, ids in channel_map.renormalised if not np.all(chosen[ids])),
        seconds=clock.seconds,
        unpruned=proto,
        original=original,
        channel_map=channel_map,
        keep=chosen,
        connected=connected,
        cut=None if whole is original else restore(whole.graph.model),
        source=source,
        narrowed=narrowed.consumers,
        blocks=narrowed.blocks,
        final=final,
    )
    with clock("checking sizes"):
        assert_consistent(result.made.outline, proto, folder)
    if not check:
        return result
    with clock("verifying on ONNX Runtime"):
        return result.verified(provider=provider, shapes=shapes, seed=seed)


def _as_planned(options: Options, plan: Plan) -> Options:
    """What a plan was made with; its method may be unknown here."""
    granularity: Literal["channel", "kernel"] = "kernel" if plan.granularity == "kernel" else "channel"
    method = next(iter(_METHODS[granularity]))
    return replace(
        options,
        sparsity=plan.sparsity,
        keep=plan.keep,
        allow_renorm=plan.allow_renorm,
        granularity=granularity,
        method=method,
    )


def _folded(whole: ChannelMap, options: Options, plan: Plan | None) -> tuple[ChannelMap, Dead, EdgeMask]:
    """The model with the constants of dead channels taken over by those who read them; what is dead; which kernel
    slices are not zero."""
    nonzero = nonzero_slices(whole)
    dead = dead_groups(whole, nonzero, merge=options.sparsity is None or options.granularity == "kernel")
    if plan is not None:  # what it keeps goes on carrying its constants
        dead = replace(dead, keep=dead.keep | keep_of(whole, plan))
    folded = fold(whole, dead)
    if folded is whole.graph.model:
        return whole, dead, nonzero
    channel_map = map_channels(folded, options, whole.graph.folder)
    if same_channels(whole, channel_map):
        return channel_map, dead, nonzero_slices(channel_map)
    return whole, dead_groups(whole, nonzero, absorb=False), nonzero


def _cut(
    original: ChannelMap, options: Options, plan: Plan | None
) -> tuple[ChannelMap, tuple[KernelCut, ...], Connectivity | None]:
    """The model with kernel slices set to zero; which; and how much of the choice was connected, if one was made."""
    kernels = kernels_of(original, _matching(original.graph, options.keep))
    if plan is not None:
        return cut_kernels(kernels, mask_of(kernels, plan.kernels)), plan.kernels, None
    found = _chosen_kernels(kernels, options)
    return cut_kernels(kernels, found.mask), kernel_cuts(kernels, found.mask), connectivity(kernels, found)


def _chosen_kernels(kernels: Kernels, options: Options) -> Fitted:
    assert options.sparsity is not None
    before = replace(sizes(kernels.channel_map), kernels=float(kernels.total))

    def size(mask: EdgeMask) -> float:
        channel_map, dead, nonzero = _folded(cut_kernels(kernels, mask), options, None)
        keep = _aligned(kernels.channel_map, dead.keep, options)
        pruned = rewrite(channel_map, keep)
        narrowed, final = _narrowed(Deferred(pruned), channel_map, keep, nonzero, options, kernels.channel_map)
        after = sizes(final or _mapped(narrowed.model, kernels.channel_map.graph.folder))
        return float(getattr(after, options.measure))

    budget = Budget(options.measure, options.sparsity, size, float(getattr(before, options.measure)))
    selection = KERNEL_METHODS[options.method](options.seed, options.norm_grid).selection(kernels)
    return within_budget(kernels, selection, budget)


def _mapped(model: ModelProto, folder: Path | None) -> ChannelMap:
    """The channel map of what was written; there is nothing to leave alone any more."""
    return build_map(Graph(laid_out(model), folder))


def _kernel_sizes(channel_map: ChannelMap) -> Sizes:
    """What a model holds, its kernel slices those that are not all zero."""
    found = sum(int(np.count_nonzero(block)) for block in nonzero_slices(channel_map).values())
    return replace(sizes(channel_map), kernels=float(found))


class _Clock:
    """Times the steps and tells progress."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        self.progress(step)
        start = time.perf_counter()
        yield
        self.seconds[step] = time.perf_counter() - start


def map_channels(model: ModelProto, options: Options, folder: Path | None) -> ChannelMap:
    """The channel map of a model, with what the options leave alone. Raises ModelError for one of too many nodes."""
    check_number_of_nodes(model)
    graph = Graph(laid_out(model), folder)
    return build_map(graph, keep=_matching(graph, options.keep), allow_renorm=options.allow_renorm)


def _matching(graph: Graph, patterns: Sequence[str]) -> set[str]:
    """Names of nodes and tensors that a pattern matches. Raises UsageError for a pattern that matches nothing."""
    names = {name for node in graph.nodes for name in (node.name, node_name(node), *node.input, *node.output) if name}
    found: set[str] = set()
    for pattern in patterns:
        matched = {name for name in names if fnmatchcase(name, pattern)}
        if not matched:
            raise UsageError(f"--keep '{pattern}' matches no node or tensor; 'onnxprune inspect' lists their names")
        found |= matched
    return found


def _choose(
    channel_map: ChannelMap,
    dead: Dead,
    blocks: Blocks,
    options: Options,
    plan: Plan | None,
    original: ChannelMap,
    clock: _Clock,
) -> tuple[BoolArray, Plan]:
    """The groups to keep, and the plan that says so in the terms of the original model.

    With a sparsity, constants of dead channels have moved into existing biases only (``merge=False``): the masked
    reference then still has the original's nodes and weights.
    """
    if plan is not None:
        return keep_of(original, plan), plan
    base = Plan("lossless", options.measure, options.granularity, None, options.allow_renorm, options.keep)
    if options.sparsity is not None:
        base = replace(base, method=options.method, sparsity=options.sparsity)
    if options.sparsity is None or options.granularity == "kernel":
        keep = _aligned(original, dead.keep, options)
        return keep, plan_of(original, keep, ~dead.keep, base)
    with clock("scoring"):
        method = METHODS[options.method](options.seed, options.norm_grid)
        scores = np.where(dead.keep, method.scores(channel_map), -np.inf)
    with clock("selecting"):
        keep = _selected(channel_map, dead, blocks, scores, options, original)
    return keep, plan_of(original, keep, ~dead.keep, base)


def _aligned(original: ChannelMap, keep: BoolArray, options: Options) -> BoolArray:
    """What is not dead, and as much of the rest as makes good widths (in lossless mode by default: where that pays)."""
    if options.align == "none":
        return keep
    alignment = parse_alignment(options.align or "auto", options.provider)
    rounded = round_up(original, keep, alignment)
    if options.align is None and options.sparsity is None:
        whole = round_up(original, keep, Alignment(alignment.step, alignment.step))
        return worth_keeping(original, keep, (rounded, whole), target_of(options.provider))
    return rounded


def _selected(
    channel_map: ChannelMap,
    dead: Dead,
    blocks: Blocks,
    scores: NDArray[np.floating],
    options: Options,
    original: ChannelMap,
) -> BoolArray:
    cost = cost_of(channel_map, options.measure)
    alignment: Alignment = parse_alignment(options.align or "auto", options.provider)
    assert options.sparsity is not None
    found = select(channel_map, scores, cost, options.sparsity, alignment, blocks, ~dead.keep)
    if found.fits and (found.whole or not options.sparsity):
        return found.keep
    most = 1 - found.cost / found.whole if found.whole else 0.0
    wanted, reached = f"sparsity {options.sparsity:g} of {options.measure}", math.floor(most * 1e4) / 1e4
    raise UnreachableError(
        f"{wanted} cannot be reached, at most {reached:g} can: {what_remains(original, found.keep)}"
        f"{_beyond(original, options, most)}",
        most,
    )


def _beyond(channel_map: ChannelMap, options: Options, most: float) -> str:
    """One clause for an error message: how far one can go where normalisations may run over fewer channels."""
    if options.allow_renorm:
        return ""
    graph = channel_map.graph
    allowed = build_map(graph, keep=_matching(graph, options.keep), allow_renorm=True, shapes=channel_map.shapes)
    share = reachable(allowed, cost_of(allowed, options.measure))
    if share <= most + 1e-3:
        return ""
    return f"; with --allow-renorm (not exact), at most {math.floor(share * 1e3) / 1e3:g} can"


def _narrowed(
    made: Deferred,
    channel_map: ChannelMap,
    keep: BoolArray,
    nonzero: Mapping[int, BoolArray],
    options: Options,
    original: ChannelMap,
) -> tuple[Narrowed, ChannelMap | None]:
    """The pruned model with layers that read only what they use, and its channel map; None where it stays as it is."""
    if options.restructure == "never" or not can_narrow(channel_map, nonzero, keep):
        return Narrowed(made.outline), None
    before = build_map(Graph(made.model, original.graph.folder))
    pinned = _matching(original.graph, options.keep)
    found = narrow(before, nonzero_slices(before), options.restructure, pinned, target_of(options.provider))
    return found, build_map(Graph(laid_out(found.model), original.graph.folder)) if found.changed else None


def _copied(model: ModelProto) -> ModelProto:
    result = ModelProto()
    result.CopyFrom(model)
    return result


def sizes(channel_map: ChannelMap) -> Sizes:
    """What a model holds, counted from the model (weights) and its channel map."""
    everything = np.ones(channel_map.groups, np.bool_)
    return _sizes_kept(channel_map, everything, channel_map.graph.model)


def _sizes_kept(channel_map: ChannelMap, keep: BoolArray, model: ModelProto) -> Sizes:
    macs, kernels = (cost_of(channel_map, measure)(keep) for measure in ("macs", "kernels"))
    return Sizes(count_weights(model), macs, kernels)


def reach(channel_map: ChannelMap) -> dict[Measure, float]:
    """For every measure, the largest sparsity that can be reached."""
    return reachable_each(channel_map, {measure: cost_of(channel_map, measure) for measure in MEASURES})


def _verified(
    result: Result, candidate: Deferred | ModelProto | Path, provider: Provider, shapes: Shapes | None, seed: int
) -> Verification:
    check_footprint(result.original.graph, result.original.shapes)
    with scratch_folder() as scratch:
        reference = _as_runnable(result, result.made_reference, scratch / "reference.onnx")
        tried = _as_runnable(result, candidate, scratch / "pruned.onnx")
        inside = [name for name in squashed_tensors(result.made_reference.outline) if _is_unchanged(result, name)]
        found = verify(
            reference, tried, provider=provider, shapes=shapes, seed=seed, folder=result.folder, inside=inside
        )
        expected = bool(result.plan.allow_renorm and result.renormalised)
        if not found.ok and not expected and not found.interface:
            noise = rounding(
                reference, found, provider=provider, shapes=shapes, seed=seed, folder=result.folder, inside=inside
            )
            found = verify(
                reference,
                tried,
                provider=provider,
                shapes=shapes,
                seed=seed,
                folder=result.folder,
                inside=inside,
                rtol=max(found.rtol, _ROUNDING * noise),
            )
    if not found.ok and not expected:
        raise VerificationError(
            f"the pruned model does not agree with its reference, nothing was written: {found}; {_remedy(found)}"
        )
    return found


def _remedy(found: Verification) -> str:
    """Zero times infinity is NaN: where removed channels were infinite, only the masked reference still shows it."""
    if found.worst is not None and found.worst.finite < 1 and np.isinf(found.worst.max_abs):
        return "channels that hold infinities or NaNs cannot be removed: leave the layers around them alone with --keep"
    return "please report the model, or leave its layers alone with --keep"


def _as_runnable(result: Result, model: Deferred | ModelProto | Path, place: Path) -> ModelProto | Path:
    """A model that ONNX Runtime can open: beyond what fits a message, from a file."""
    if isinstance(model, Path):
        return model
    made = model if isinstance(model, Deferred) else Deferred(model)
    held = sum(len(tensor.raw_data) for tensor in made.outline.graph.initializer)
    if held < _IN_MEMORY and result.folder is None:
        return made.model
    save(made.outline, place, source=result.source, pending=made.pending)
    return place


def _is_unchanged(result: Result, name: str) -> bool:
    """Whether a tensor keeps all its channels whatever is chosen."""
    if result.final is not None and result.final.shapes.of.get(name) != result.channel_map.shapes.of.get(name):
        return False  # gone, or only a part of it is left
    channel_map = result.channel_map
    axes = channel_map.axes.get(name, ())
    return all(ids is None or bool(np.all(channel_map.frozen[ids])) for ids in axes)
