"""A plan: which channels and kernel slices go and why, as data. JSON in, JSON out.

A plan names channels by where a user can see them: a stored constant, an axis and indices. Channels coupled with these
leave too; each group is named once. Kernel slices are named by the constant that holds them. Applying a plan to the
same model gives the same result, whatever chose it.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.channels import ChannelMap
from onnxprune.errors import UsageError
from onnxprune.passes.channel_graph import EdgeMask
from onnxprune.passes.cost import MEASURES
from onnxprune.passes.kernel_slices import Kernels

__all__ = ["Cut", "KernelCut", "Plan", "keep_of", "kernel_cuts", "mask_of", "plan_of"]

_VERSION = 1


@dataclass(frozen=True)
class Cut:
    """Indices of an axis of a stored constant that leave, as input ``input`` of node ``node`` (its position).

    ``reason``: ``score`` (chosen by the method) or ``dead`` (cannot matter).
    """

    tensor: str
    node: int
    input: int
    axis: int
    indices: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class KernelCut:
    """Kernel slices of a stored constant that become zero, as weight ``input`` of node ``node`` (and of all that share
    it). ``shape``: (output channels, input channels of one convolution group). ``bits``: one for each slice, outputs
    first, 1 where it goes, the highest bit of a byte first, in base64."""

    tensor: str
    node: int
    input: int
    shape: tuple[int, int]
    bits: str

    @classmethod
    def of(cls, tensor: str, node: int, k: int, gone: NDArray[np.bool_]) -> KernelCut:
        bits = b64encode(np.packbits(gone.ravel()).tobytes()).decode("ascii")
        return cls(tensor, node, k, (gone.shape[0], gone.shape[1]), bits)

    @property
    def gone(self) -> NDArray[np.bool_]:
        """Which slices go, bool [out, in per group]. Raises ValueError where the bits are not as many."""
        packed = np.frombuffer(b64decode(self.bits, validate=True), np.uint8)
        count = self.shape[0] * self.shape[1]
        if len(packed) != -(-count // 8):
            raise ValueError(f"kernels of '{self.tensor}' with {8 * len(packed)} bits for {count} slices")
        return np.unpackbits(packed, count=count).astype(np.bool_).reshape(self.shape)


@dataclass(frozen=True)
class Plan:
    """What is to go. ``cuts`` and ``kernels`` are ordered by node, input and axis."""

    method: str = "lossless"
    measure: str = "weights"
    granularity: str = "channel"
    sparsity: float | None = None
    allow_renorm: bool = False
    keep: tuple[str, ...] = ()
    cuts: tuple[Cut, ...] = field(default_factory=tuple)
    kernels: tuple[KernelCut, ...] = field(default_factory=tuple)

    def to_json(self) -> str:
        held = asdict(self)
        if not self.kernels:
            del held["kernels"]
        return json.dumps({"onnxprune_plan": _VERSION, **held}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Raises UsageError where the text is not a plan of this version."""
        try:
            held: dict[str, Any] = json.loads(text)
            if held.pop("onnxprune_plan") != _VERSION:
                raise UsageError(f"the plan is of another version, expected {_VERSION}; make it anew with --save-plan")
            cuts = tuple(_cut(cut) for cut in held.pop("cuts"))
            kernels = tuple(_kernel_cut(cut) for cut in held.pop("kernels", ()))
            plan = cls(**{**held, "keep": tuple(held["keep"]), "cuts": cuts, "kernels": kernels})
            if plan.sparsity is not None and not isinstance(plan.sparsity, int | float):
                raise TypeError(f"sparsity is {plan.sparsity!r}")
            if plan.measure not in MEASURES:
                raise ValueError(f"measure is {plan.measure!r}")
            if plan.granularity not in ("channel", "kernel"):
                raise ValueError(f"granularity is {plan.granularity!r}")
            return plan
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UsageError(f"the plan cannot be read ({error}); expected the JSON that --save-plan writes") from error

    def __str__(self) -> str:
        count = sum(len(cut.indices) for cut in self.cuts)
        slices = sum(int(np.count_nonzero(cut.gone)) for cut in self.kernels)
        also = f"; {slices} kernel slices of {len(self.kernels)} weights" if self.kernels else ""
        return f"plan by {self.method}: {count} groups of channels leave, seen on {len(self.cuts)} axes{also}"


def _cut(held: dict[str, Any]) -> Cut:
    """Raises TypeError and ValueError for what cannot be one."""
    cut = Cut(**{**held, "indices": tuple(held["indices"])})
    if not cut.indices or not all(type(n) is int and n >= 0 for n in (cut.node, cut.input, cut.axis, *cut.indices)):
        raise ValueError(f"a cut of '{cut.tensor}' with places that are not counted from 0")
    return cut


def _kernel_cut(held: dict[str, Any]) -> KernelCut:
    """Raises TypeError and ValueError for what cannot be one."""
    cut = KernelCut(**{**held, "shape": tuple(held["shape"])})
    numbers = (cut.node, cut.input, *cut.shape)
    if len(cut.shape) != 2 or not all(type(n) is int and n >= 0 for n in numbers) or not np.any(cut.gone):
        raise ValueError(f"kernels of '{cut.tensor}' with places that are not counted from 0, or none")
    return cut


def plan_of(channel_map: ChannelMap, keep: NDArray[np.bool_], dead: NDArray[np.bool_], base: Plan) -> Plan:
    """The plan that removes what is not in ``keep`` (bool [groups]); ``dead`` (bool [groups]) tells the reasons."""
    pending = ~keep
    cuts: list[Cut] = []
    for (index, k), axes in sorted(channel_map.uses.items()):
        for axis, ids in enumerate(axes):
            if ids is None or not np.any(pending[ids]):
                continue
            groups, first = np.unique(ids, return_index=True)
            for reason, chosen in (("score", pending & ~dead), ("dead", pending & dead)):
                indices = np.sort(first[chosen[groups]])
                if len(indices):
                    name = channel_map.graph.nodes[index].input[k]
                    cuts.append(Cut(name, index, k, axis, tuple(indices.tolist()), reason))
            pending[groups] = False
    return Plan(**{**base.__dict__, "cuts": tuple(cuts)})


def keep_of(channel_map: ChannelMap, plan: Plan) -> NDArray[np.bool_]:
    """The groups a plan keeps, bool [groups]. Raises UsageError where the plan is for another model."""
    keep = np.ones(channel_map.groups, np.bool_)
    for cut in plan.cuts:
        axes = channel_map.uses.get((cut.node, cut.input), ())
        ids = axes[cut.axis] if 0 <= cut.axis < len(axes) else None
        known = ids is not None and channel_map.graph.nodes[cut.node].input[cut.input] == cut.tensor
        if not known or ids is None or not 0 <= min(cut.indices) <= max(cut.indices) < len(ids):
            raise UsageError(f"the plan does not fit this model: it has no '{cut.tensor}' with these channels")
        groups = ids[list(cut.indices)]
        if np.any(channel_map.frozen[groups]):
            raise UsageError(f"the plan removes channels of '{cut.tensor}' that may not leave in this model")
        keep[groups] = False
    for outputs, inputs in channel_map.needs:
        if np.any(keep[outputs]) and not np.any(keep[inputs]):
            raise UsageError("the plan removes every input of a layer whose output stays")
    return keep


def kernel_cuts(kernels: Kernels, mask: EdgeMask) -> tuple[KernelCut, ...]:
    """The non-zero kernel slices that do not stay, one cut a stored constant."""
    cuts = []
    for held in kernels.free:
        gone = kernels.nonzero[held.node] & ~mask[held.node]
        if np.any(gone):
            cuts.append(KernelCut.of(held.name, held.node, held.contractions[0].weight, gone))
    return tuple(sorted(cuts, key=lambda cut: (cut.node, cut.input)))


def mask_of(kernels: Kernels, cuts: tuple[KernelCut, ...]) -> Mapping[int, NDArray[np.bool_]]:
    """The edge mask that the cuts leave. Raises UsageError where they are for another model."""
    places = {(held.name, held.node, held.contractions[0].weight): held for held in kernels.free}
    chosen = {held.node: kernels.nonzero[held.node] for held in kernels.free}
    for cut in cuts:
        held = places.get((cut.tensor, cut.node, cut.input))
        if held is None or chosen[held.node].shape != cut.shape:
            raise UsageError(f"the plan does not fit this model: it has no '{cut.tensor}' with these kernel slices")
        chosen[held.node] = chosen[held.node] & ~cut.gone
    return kernels.mask(chosen)
