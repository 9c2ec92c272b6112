"""``inspect``: what could be pruned in a model, what could not and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from onnxprune.channels import ChannelMap
from onnxprune.kernel_budget import plain_connectivity
from onnxprune.layers import Census, Layer, census, layers
from onnxprune.listed_chains import ListedChain, strongest_chains
from onnxprune.model_io import LoadedModel, loaded
from onnxprune.passes.cost import Measure
from onnxprune.passes.flow import flow
from onnxprune.passes.fold import dead_groups, signal_blocks
from onnxprune.passes.kernel_slices import EdgeMask, kernels_of
from onnxprune.pipeline import Options, Sizes, map_channels, reach, sizes

__all__ = ["Inspection", "Reachability", "inspect"]

_RATES = (0.5, 0.9, 0.98)


@dataclass(frozen=True)
class Reachability:
    """Output channels of a layer: reached from an input, reaching an output, and those that lossless mode removes."""

    accessible: int
    coaccessible: int
    dead: int


@dataclass(frozen=True)
class Inspection:
    """``layers`` and ``channels`` go together; ``reach``: measure → largest sparsity (0..1) that can be reached;
    ``plain_connectivity``: sparsity of kernel slices → the share of those kept that plain magnitude leaves connected;
    ``chains``: the strongest ones, if they were asked for."""

    sizes: Sizes
    layers: tuple[Layer, ...]
    channels: tuple[Reachability, ...]
    census: Census
    reach: dict[Measure, float]
    plain_connectivity: dict[float, float]
    chains: tuple[ListedChain, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts."""
        frozen = [
            {"operator": cause.operator, "node": cause.node, "reason": cause.reason, "weights": count}
            for cause, count in sorted(self.census.frozen.items(), key=lambda item: -item[1])
        ]
        return {
            "onnxprune_inspection": 1,
            "sizes": asdict(self.sizes),
            "reachable_sparsity": dict(self.reach),
            "plain_magnitude_connected": [{"sparsity": s, "share": x} for s, x in self.plain_connectivity.items()],
            "weights": {"total": self.census.total, "prunable": self.census.free, "frozen": frozen},
            "layers": [
                asdict(layer) | asdict(channels) for layer, channels in zip(self.layers, self.channels, strict=True)
            ],
            "chains": [
                asdict(chain) | {"product": chain.product if isfinite(chain.product) else None} for chain in self.chains
            ],
        }


def inspect(
    model: ModelProto | LoadedModel | str | Path,
    *,
    keep: Sequence[str] = (),
    allow_renorm: bool = False,
    folder: Path | None = None,
    chains: int = 0,
) -> Inspection:
    """Per layer: channels, groups, what is frozen and by which operator; and what sparsity is reachable.

    Args:
        model: the model or its file.
        keep: patterns of node or tensor names to leave alone.
        allow_renorm: count channels that a normalisation runs over as prunable.
        folder: where the external data of a model in memory lies.
        chains: how many of the strongest chains to list.

    Raises: UsageError, ModelError as ``prune`` does.
    """
    source = loaded(model, folder)
    channel_map = map_channels(source.proto, Options(keep=tuple(keep), allow_renorm=allow_renorm), source.folder)
    kernels = kernels_of(channel_map)
    return Inspection(
        sizes=sizes(channel_map),
        layers=layers(channel_map),
        channels=_reachability(channel_map, kernels.nonzero),
        census=census(channel_map),
        reach=reach(channel_map),
        plain_connectivity=plain_connectivity(kernels, _RATES),
        chains=strongest_chains(channel_map, kernels.graph, chains) if chains > 0 else (),
    )


def _reachability(channel_map: ChannelMap, nonzero: EdgeMask) -> tuple[Reachability, ...]:
    found = flow(channel_map, signal_blocks(nonzero))
    dead = ~dead_groups(channel_map, nonzero).keep
    return tuple(
        Reachability(
            int(np.count_nonzero(found.forward[c.outputs] > -np.inf)),
            int(np.count_nonzero(found.backward[c.outputs] > -np.inf)),
            int(np.count_nonzero(dead[c.outputs])),
        )
        for c in channel_map.contractions
    )
