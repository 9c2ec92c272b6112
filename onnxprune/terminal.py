"""What the terminal shows: one compact summary, tables, progress (only on a terminal, on stderr)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnxprune.bench import Latency
from onnxprune.inspection import Inspection
from onnxprune.layers import Census, Layer
from onnxprune.listed_chains import ListedChain
from onnxprune.pipeline import Result
from onnxprune.report import file_bytes

__all__ = ["Terminal"]

_WIDEST = 8  # layers shown as bars in the summary
_PIPE_WIDTH = 200  # columns when the output is not a terminal
_GAP = 2  # columns between those of a table
_LEAST_CAUSE = 22  # columns for what froze a layer, even where lines then are longer than the terminal
_BAR = 24  # characters of the longest bar
_CAUSES = 5  # causes of freezing shown without -v


class Terminal:
    """``quiet`` prints nothing; ``verbose`` shows all layers and causes instead of the most important ones."""

    def __init__(self, quiet: bool, verbose: int) -> None:
        # Names may look like markup.
        self.console = Console(quiet=quiet, highlight=False, soft_wrap=True, markup=False, emoji=False)
        if not self.console.is_terminal:
            self.console.width = _PIPE_WIDTH
        self.status = Console(stderr=True, quiet=quiet)
        self.verbose = verbose

    @contextmanager
    def progress(self) -> Iterator[Callable[[str], None]]:
        """A spinner with the current step."""
        if not self.status.is_terminal or self.status.quiet:
            yield lambda step: None
            return
        with self.status.status("starting") as shown:
            yield lambda step: shown.update(f"{step} …")

    # ---- prune

    def summary(self, result: Result, out: Path, latencies: Sequence[Latency]) -> None:
        """The table of a run: before, after, ratio; then widths, what is frozen, where the result lies."""
        table = Table(box=None, padding=(0, 2, 0, 0))
        for name in ("", "before", "after", "ratio"):
            table.add_column(name, justify="left" if not name else "right")
        for name, before, after in (
            ("weights", result.before.weights, result.after.weights),
            ("MACs", result.before.macs, result.after.macs),
            ("kernel slices", result.before.kernels, result.after.kernels),
        ):
            table.add_row(name, _count(before), _count(after), _ratio(before, after))
        if result.source and result.source.file_size:
            stored, written = result.source.file_size, file_bytes(out)
            table.add_row("file", _bytes(stored), _bytes(written), _ratio(stored, written))
        if len(latencies) == 2:
            a, b = latencies
            name = (
                f"latency ({a.provider}, {a.threads} thread{'s' * (a.threads != 1)})"
                if a.threads
                else f"latency ({a.provider})"
            )
            table.add_row(name, f"{a.p50_ms:.3g} ms", f"{b.p50_ms:.3g} ms", f"{b.speedup:.2f} × as fast")
        self.console.print(table)
        self._agreement(result, bool(latencies))
        if result.connected:
            method, plain = result.connected.method, result.connected.plain_magnitude
            self.console.print(
                f"connected (on a path from an input to an output): {method:.1%} of the kernel slices chosen; "
                f"plain magnitude at this rate: {plain:.1%}"
            )
        self._bars(result.layers)
        self._frozen(result.census)
        if result.narrowed or result.blocks:
            read, apart = len(result.narrowed), len(result.blocks)
            self.console.print(f"layers that read only what they use: {read}; that fell apart into blocks: {apart}")
        for name in result.renormalised:
            self.console.print(f"normalised over fewer channels (not exact): {name}")
        self.console.print(f"wrote {out}")

    def _agreement(self, result: Result, is_timed: bool) -> None:
        found = result.verification
        against = "the original" if result.plan.sparsity is None else "the masked reference"
        if found is None:
            self.console.print("not verified (--no-verify)")
            return
        shapes = ", ".join(f"{name} {list(shape)}" for name, shape in found.shapes[0].items()) if found.shapes else ""
        self.console.print(
            f"largest output error against {against}: {found.error:.1e} of the output's scale "
            f"({found.provider}; {shapes})"
        )
        if not is_timed:
            self.console.print("not timed: a model of over 1 GB is with --bench alone")

    def _bars(self, layers: Sequence[Layer]) -> None:
        """Widths before and after of the layers that were widest, or with -v of all."""
        chosen = layers if self.verbose else sorted(layers, key=lambda layer: -layer.outputs)[:_WIDEST]
        shown = [layer for layer in layers if layer in chosen]
        if not shown or all(layer.outputs == layer.outputs_kept for layer in layers):
            return
        widest = max(layer.outputs for layer in shown)
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for layer in shown:
            whole = max(1, round(_BAR * layer.outputs / widest))
            left = min(whole, max(int(layer.outputs_kept > 0), round(_BAR * layer.outputs_kept / widest)))
            bar = Text.assemble(("█" * left, "green"), ("░" * (whole - left), "bright_black"))
            table.add_row(_short(layer.name), bar, f"{layer.outputs} → {layer.outputs_kept}")
        self.console.print(table)

    def _frozen(self, census: Census) -> None:
        causes = list(census.by_operator().items())
        for (operator, reason), count in causes if self.verbose else causes[:_CAUSES]:
            self.console.print(f"frozen: {count / census.total:6.1%} of the weights by {operator} ({reason})")
        if not self.verbose and len(causes) > _CAUSES:
            self.console.print(f"frozen: {len(causes) - _CAUSES} more causes (-v)")

    # ---- inspect, bench

    def inspection(self, found: Inspection, path: Path) -> None:
        """Layers, frozen weights with their shares, and what is reachable."""
        names = ("layer", "operator", "in", "out", "groups", "acc", "co-acc", "dead", "weights", "frozen by")
        rows = [
            (
                _short(layer.name, 30),
                layer.operator,
                str(layer.inputs),
                str(layer.outputs),
                str(layer.groups_free),
                str(channels.accessible),
                str(channels.coaccessible),
                str(channels.dead),
                _count(layer.weights),
                layer.frozen_by,
            )
            for layer, channels in zip(found.layers, found.channels, strict=True)
        ]
        widths = [max(map(cell_len, column)) + _GAP for column in zip(names, *rows, strict=True)]
        room = max(_LEAST_CAUSE, self.console.width - sum(widths[:-1]))  # a long cause must not push the numbers out
        table = Table(box=None, padding=(0, _GAP, 0, 0))
        for name, width in zip(names, [*widths[:-1], room], strict=True):
            left = name in ("layer", "operator", "frozen by")
            table.add_column(
                name, justify="left" if left else "right", no_wrap=True, overflow="ellipsis", max_width=width - _GAP
            )
        for row in rows:
            table.add_row(*row)
        self.console.print(table, width=sum(widths[:-1]) + room)
        self.console.print(
            "groups: coupled channels that may leave; acc, co-acc: output channels reached from an input, "
            "reaching an output"
        )
        self._shares(found.census)
        for chain in found.chains:
            self._chain(chain)
        sizes = found.sizes
        self.console.print(
            f"{path}: {_count(sizes.weights)} weights, {_count(sizes.macs)} MACs, "
            f"{_count(sizes.kernels)} kernel slices; reachable sparsity "
            + ", ".join(f"{share:.4f} of {measure}" for measure, share in found.reach.items())
        )
        shares = ", ".join(f"{share:.1%} at {sparsity:g}" for sparsity, share in found.plain_connectivity.items())
        self.console.print(f"kernel slices left connected by plain magnitude: {shares} (by --method topology: all)")

    def _chain(self, chain: ListedChain) -> None:
        """Product, then layer input→output (norm) for every kernel slice."""
        product = f"{chain.product:.4g}" if isfinite(chain.product) else f"10^{chain.log10_product:.1f}"
        links = (f"{link.layer} {link.input}→{link.output} ({link.norm:.3g})" for link in chain.links)
        self.console.print(f"chain {product}: " + ", ".join(links))

    def _shares(self, census: Census) -> None:
        total = max(census.total, 1)
        self.console.print(f"{census.free / total:7.2%} of the weights can be pruned")
        for cause, count in sorted(census.frozen.items(), key=lambda item: -item[1]):
            where = f" '{cause.node}'" if cause.node else ""
            self.console.print(f"{count / total:7.2%} frozen by {cause.operator}{where}: {cause.reason}")

    def latencies(self, found: Sequence[Latency]) -> None:
        """One row a model."""
        table = Table(box=None, padding=(0, 2, 0, 0))
        for name in ("model", "p50 ms", "p90 ms", "p99 ms", "items/s", "× first", "stored", "to run"):
            table.add_column(name, justify="left" if name == "model" else "right", overflow="fold")
        for each in found:
            table.add_row(
                each.model,
                f"{each.p50_ms:.3f}",
                f"{each.p90_ms:.3f}",
                f"{each.p99_ms:.3f}",
                f"{each.throughput:.4g}",
                f"{each.speedup:.2f}",
                _bytes(each.stored_bytes),
                "" if each.peak_bytes is None else _bytes(each.peak_bytes),
            )
        self.console.print(table)
        first = found[0]
        shapes = ", ".join(f"{name} {list(shape)}" for name, shape in first.shapes.items())
        self.console.print(
            f"{first.provider}, threads {first.threads or 'auto'}, {first.rounds} interleaved runs each; {shapes}"
        )


def _count(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 10 * size or (value >= size and unit != "k"):
            return f"{value / size:.4g} {unit}"
    return f"{value:.0f}"


def _bytes(value: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"


def _ratio(before: float, after: float) -> str:
    return f"{1 - after / before:.2%} less" if before else ""


def _short(name: str, limit: int = 36) -> str:
    return name if len(name) <= limit else f"…{name[1 - limit :]}"
