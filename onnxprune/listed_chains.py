"""The strongest chains of a model, in the terms a user knows it by: layers and channels."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from math import exp, log

from onnxprune.channels import ChannelMap
from onnxprune.graph import node_name
from onnxprune.passes.anchored_chains import anchored_chains
from onnxprune.passes.chain_stages import Chain, Floats
from onnxprune.passes.chains import log_weights
from onnxprune.passes.channel_graph import ChannelGraph
from onnxprune.passes.norms import operator_block

__all__ = ["Link", "ListedChain", "strongest_chains"]

_LARGEST = 700.0  # logarithm of what still is a float


@dataclass(frozen=True)
class Link:
    """A kernel slice of a chain: from channel ``input`` of what the layer reads to its channel ``output``.

    ``norm``: its operator norm, times the gain of a normalisation right behind it.
    """

    layer: str
    operator: str
    input: int
    output: int
    norm: float


@dataclass(frozen=True)
class ListedChain:
    """A path from a model input to a model output. ``product``: of the norms and gains on it (inf where it is too
    large for a float); ``log10_product``: its decimal logarithm."""

    product: float
    log10_product: float
    links: tuple[Link, ...]


def strongest_chains(channel_map: ChannelMap, graph: ChannelGraph, count: int) -> tuple[ListedChain, ...]:
    """The strongest chains from a model input to a model output, each with a kernel slice that those before it lack.

    ``graph``: the channel graph of the map.
    """
    norms = {c.node: operator_block(channel_map, c) for c in channel_map.contractions}
    weights = log_weights(graph, norms)
    found = islice(anchored_chains(graph, weights), count)
    return tuple(_listed(channel_map, graph, weights, chain) for chain in found)


def _listed(channel_map: ChannelMap, graph: ChannelGraph, weights: dict[int, Floats], chain: Chain) -> ListedChain:
    links = []
    for node, out, i in chain.slices:
        block = graph.block_of[node]
        width = block.shape[1]
        group = out // (block.shape[0] // block.groups)
        proto = channel_map.graph.nodes[node]
        links.append(Link(node_name(proto), proto.op_type, group * width + i, out, exp(weights[node][out, i])))
    product = exp(chain.value) if chain.value < _LARGEST else float("inf")
    return ListedChain(product, chain.value / log(10), tuple(links))
