"""Token models as their authors write them, small, with random weights: what exporters make of attention in the wild.

Each is a function without arguments that returns a module and example inputs; ``export`` writes it as ONNX.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["NETWORKS", "export"]

WORDS, LENGTH, SIZE = 50, 7, 32


class RMSNorm(nn.Module):
    """x / √(mean x² + ε) · γ"""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3) * self.weight


def rotated(x: Tensor) -> Tensor:
    """Halves of the last axis swapped, one negated."""
    left, right = x.chunk(2, dim=-1)
    return torch.cat((-right, left), dim=-1)


class LlamaLayer(nn.Module):
    """Rotary positions, fewer keys than queries, a gated feed-forward; with past keys and values, if given."""

    def __init__(self, heads: int = 4, groups: int = 2, width: int = 8, hidden: int = 48) -> None:
        super().__init__()
        self.heads, self.groups, self.width = heads, groups, width
        self.before, self.after = RMSNorm(SIZE), RMSNorm(SIZE)
        self.q = nn.Linear(SIZE, heads * width, bias=False)
        self.k = nn.Linear(SIZE, groups * width, bias=False)
        self.v = nn.Linear(SIZE, groups * width, bias=False)
        self.o = nn.Linear(heads * width, SIZE, bias=False)
        self.gate_up, self.down = nn.Linear(SIZE, 2 * hidden, bias=False), nn.Linear(hidden, SIZE, bias=False)
        angles = torch.arange(32)[:, None] / 100 ** (torch.arange(0, width, 2) / width)
        self.register_buffer("angles", torch.cat((angles, angles), dim=-1))

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        n, length, _ = x.shape
        h = self.before(x)
        q, k, v = (f(h).view(n, length, -1, self.width).transpose(1, 2) for f in (self.q, self.k, self.v))
        start = 0 if past is None else past[0].shape[2]
        angles = self.angles[start : start + length]
        q, k = (t * angles.cos() + rotated(t) * angles.sin() for t in (q, k))
        if past is not None:
            k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        present = (k, v)
        k, v = (self._repeated(t) for t in (k, v))
        scores = q @ k.transpose(2, 3) / self.width**0.5
        seen = (torch.softmax(scores, dim=-1) @ v).transpose(1, 2).reshape(n, length, -1)
        x = x + self.o(seen)
        gate, up = self.gate_up(self.after(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up), present

    def _repeated(self, x: Tensor) -> Tensor:
        n, groups, length, width = x.shape
        wide = x[:, :, None].expand(n, groups, self.heads // groups, length, width)
        return wide.reshape(n, self.heads, length, width)


class Llama(nn.Module):
    """Its output layer is the table of words, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, SIZE)
        self.layers = nn.ModuleList(LlamaLayer() for _ in range(2))
        self.norm = RMSNorm(SIZE)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        for layer in self.layers:
            x, _ = layer(x)
        return self.norm(x) @ self.words.weight.T


class CachedLlama(Llama):
    """One step of a decoder: past keys and values come in, present ones go out."""

    def forward(self, ids: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, caches = self.words(ids), []
        for i, layer in enumerate(self.layers):
            x, present = layer(x, (keys[i], values[i]))
            caches.append(present)
        present_keys, present_values = (torch.stack(held) for held in zip(*caches, strict=True))
        return self.norm(x) @ self.words.weight.T, present_keys, present_values


class Conv1D(nn.Module):
    """GPT-2's linear layer: its weight is [in, out]."""

    def __init__(self, size: int, out: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(size, out) * size**-0.5), nn.Parameter(torch.zeros(out))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], -1)


class GPT2(nn.Module):
    """Queries, keys and values from one layer, a causal mask, tables of words and of positions."""

    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.words, self.positions = nn.Embedding(WORDS, SIZE), nn.Embedding(LENGTH, SIZE)
        self.qkv, self.out = Conv1D(SIZE, 3 * SIZE), Conv1D(SIZE, SIZE)
        self.up, self.down = Conv1D(SIZE, 96), Conv1D(96, SIZE)
        self.norms = nn.ModuleList(nn.LayerNorm(SIZE) for _ in range(3))
        self.register_buffer("mask", torch.tril(torch.ones(LENGTH, LENGTH, dtype=torch.bool)))

    def forward(self, ids: Tensor) -> Tensor:
        n, length = ids.shape
        x = self.words(ids) + self.positions(torch.arange(length))
        q, k, v = (
            t.view(n, length, self.heads, -1).permute(0, 2, 1, 3)
            for t in self.qkv(self.norms[0](x)).split(SIZE, dim=2)
        )
        scores = q @ k.transpose(-1, -2) / torch.full([], v.shape[-1] ** 0.5)
        scores = torch.where(self.mask[:length, :length], scores, torch.full([], -1e4))
        seen = torch.softmax(scores, dim=-1) @ v
        x = x + self.out(seen.permute(0, 2, 1, 3).reshape(n, length, -1))
        x = x + self.down(F.gelu(self.up(self.norms[1](x)), approximate="tanh"))
        return F.linear(self.norms[2](x), self.words.weight)


class T5Attention(nn.Module):
    """No scale; a bias per head and distance; keys and values from elsewhere, if given."""

    def __init__(self, heads: int = 4, width: int = 8) -> None:
        super().__init__()
        self.heads, self.norm = heads, RMSNorm(SIZE)
        self.q, self.k, self.v = (nn.Linear(SIZE, heads * width, bias=False) for _ in range(3))
        self.o = nn.Linear(heads * width, SIZE, bias=False)

    def forward(self, x: Tensor, memory: Tensor | None, bias: Tensor | None) -> Tensor:
        h = self.norm(x)
        held = h if memory is None else memory
        q, k, v = (self._apart(f(t)) for f, t in ((self.q, h), (self.k, held), (self.v, held)))
        scores = torch.matmul(q, k.transpose(3, 2))
        scores = scores if bias is None else scores + bias
        seen = torch.matmul(F.softmax(scores.float(), dim=-1).type_as(scores), v)
        return x + self.o(seen.transpose(1, 2).contiguous().view(x.shape[0], x.shape[1], -1))

    def _apart(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1, self.heads, x.shape[2] // self.heads).transpose(1, 2)


class T5(nn.Module):
    """An encoder layer and a decoder layer, with a table of biases by bucket of the distance."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.buckets = nn.Embedding(WORDS, SIZE), nn.Embedding(8, 4)
        self.encoder, self.decoder, self.cross = T5Attention(), T5Attention(), T5Attention()
        self.norm = RMSNorm(SIZE)
        self.gate, self.up, self.down = nn.Linear(SIZE, 48), nn.Linear(SIZE, 48), nn.Linear(48, SIZE)

    def forward(self, ids: Tensor, answer: Tensor) -> Tensor:
        memory = self.encoder(self.words(ids), None, self._bias(ids.shape[1]))
        h = self.norm(memory)
        memory = memory + self.down(F.gelu(self.gate(h)) * self.up(h))
        x = self.decoder(self.words(answer), None, None)
        return self.norm(self.cross(x, memory, None)) @ self.words.weight.T

    def _bias(self, length: int) -> Tensor:
        places = torch.arange(length)
        distance = (places[None, :] - places[:, None]).abs().clamp(max=7)
        return self.buckets(distance).permute(2, 0, 1).unsqueeze(0)


class Swin(nn.Module):
    """Attention within windows that are shifted against the image, a table of relative positions, merged patches."""

    def __init__(self, size: int = 24, heads: int = 3, window: int = 4) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.patches = nn.Conv2d(3, size, 2, 2)
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(2))
        self.qkv, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads))
        spots = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        apart = (spots[:, :, None] - spots[:, None, :] + window - 1).permute(1, 2, 0)
        self.register_buffer("index", apart[..., 0] * (2 * window - 1) + apart[..., 1])
        self.mlp = nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))
        self.merge, self.head = nn.Linear(4 * size, 2 * size, bias=False), nn.Linear(2 * size, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).permute(0, 2, 3, 1)
        x = x + self._attention(self.norms[0](x))
        x = x + self.mlp(self.norms[1](x))
        parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.head(F.relu(self.merge(torch.cat(parts, dim=-1))).mean(dim=(1, 2)))

    def _attention(self, x: Tensor) -> Tensor:
        n, height, width, size = x.shape
        w, shift = self.window, self.window // 2
        x = torch.roll(x, (-shift, -shift), dims=(1, 2))
        x = x.view(n, height // w, w, width // w, w, size).permute(0, 1, 3, 2, 4, 5).reshape(-1, w * w, size)
        qkv = self.qkv(x).reshape(x.shape[0], w * w, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        bias = self.table[self.index.view(-1)].view(w * w, w * w, -1).permute(2, 0, 1)
        scores = torch.softmax(q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1) + bias.unsqueeze(0), dim=-1)
        x = self.out((scores @ v).transpose(1, 2).reshape(-1, w * w, size))
        x = x.view(n, height // w, width // w, w, w, size).permute(0, 1, 3, 2, 4, 5).reshape(n, height, width, size)
        return torch.roll(x, (shift, shift), dims=(1, 2))


def _ids(length: int = LENGTH) -> Tensor:
    return torch.randint(0, WORDS, (2, length))


NETWORKS: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "llama": lambda: (Llama(), (_ids(),)),
    "cached_llama": lambda: (CachedLlama(), (_ids(1), torch.randn(2, 2, 2, 5, 8), torch.randn(2, 2, 2, 5, 8))),
    "gpt2": lambda: (GPT2(), (_ids(),)),
    "t5": lambda: (T5(), (_ids(), _ids(4))),
    "swin": lambda: (Swin(), (torch.randn(2, 3, 16, 16),)),
}


def export(name: str, path: Path, exporter: str = "legacy", *, open_sizes: bool = False, half: bool = False) -> None:
    """Write a network as ONNX.

    Args:
        name: key of ``NETWORKS``.
        path: the file to write.
        exporter: ``legacy`` or ``dynamo``.
        open_sizes: leave batch and length (of token ids) open.
        half: 16-bit floats.
    """
    torch.manual_seed(0)
    module, inputs = NETWORKS[name]()
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    module.eval()
    if half:
        module, inputs = module.half(), tuple(t.half() if t.is_floating_point() else t for t in inputs)
    names = [f"x{i}" for i in range(len(inputs))]
    open_axes = {n: {0: "batch", 1: f"length_{n}"} for n, t in zip(names, inputs, strict=True) if t.dim() == 2}
    if exporter == "legacy":
        torch.onnx.export(module, inputs, path, dynamo=False, input_names=names, opset_version=17,
                          dynamic_axes=open_axes if open_sizes else None)  # fmt: skip
        return
    dims = tuple({a: torch.export.Dim.DYNAMIC for a in open_axes.get(n, {})} for n in names)
    torch.onnx.export(module, inputs, path, dynamo=True, external_data=False, verbose=False, input_names=names,
                      dynamic_shapes=dims if open_sizes else None)  # fmt: skip
