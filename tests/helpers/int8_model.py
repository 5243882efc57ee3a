"""The native kernel's arithmetic written out in numpy, one sequence at a time: what its results are compared with, bit
by bit. Every float operation is one that IEEE 754 defines, in the order that the kernel has."""

from __future__ import annotations

import decimal
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audiolm_cli.language_models.frames import FrameTransformer
from audiolm_cli.language_models.parallel import ParallelTransformer
from audiolm_cli.language_models.sampling import StageSampling
from audiolm_cli.language_models.transformer import Stack
from audiolm_cli.mimi.decoder import CodeDecoder, RMSNorm

F = np.float32
SHIFT = F(12582912.0)


def lane_sum(x: np.ndarray) -> np.ndarray:
    """`[..., N]`, N a multiple of 8 -> `[...]`: eight sums side by side, then these."""
    parts = x.reshape(*x.shape[:-1], -1, 8)
    v = np.zeros((*x.shape[:-1], 8), F)
    for n in range(parts.shape[-2]):
        v = v + parts[..., n, :]
    v = np.moveaxis(v, -1, 0)
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))


def exponential(x: np.ndarray) -> np.ndarray:
    low = np.maximum(x, F(-100))
    shifted = low * F(1.44269504) + SHIFT
    n = shifted - SHIFT
    r = (low - n * F(0.693359375)) + n * F(2.12194440e-4)
    p = np.full_like(r, F(1.9875691500e-4))
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p * r + F(c)
    y = (p * (r * r) + r) + F(1)
    power = np.maximum(n.astype(np.int32), -126)
    return np.where(x > F(-87), y * ((power + 127) << 23).view(F), F(0))


def gelu(x: np.ndarray) -> np.ndarray:
    z = np.abs(x) * F(0.70710678)
    t = F(1) / (z * F(0.3275911) + F(1))
    p = np.full_like(t, F(1.061405429))
    for c in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        p = p * t + F(c)
    outside = (p * t) * exponential(-(z * z))
    return np.where(x < 0, x * (F(0.5) * outside), x * (F(1) - F(0.5) * outside))


def sine_cosine(angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float64 -> float32."""
    quarter = (angle * 0.63661977236758134308 + 6755399441055744.0) - 6755399441055744.0
    r = (angle - quarter * 1.57079632673412561417) - quarter * 6.07710050650619224932e-11
    z = r * r
    s = np.full_like(z, 1.58969099521155010221e-10)
    for c in (-2.50507602534068634195e-08, 2.75573137070700676789e-06, -1.98412698298579493134e-04,
              8.33333333332248946124e-03, -1.66666666666666324348e-01):  # fmt: skip
        s = s * z + c
    s = (s * z) * r + r
    k = np.full_like(z, -1.13596475577881948265e-11)
    for c in (2.08757232129817482790e-09, -2.75573143513906633035e-07, 2.48015872894767294178e-05,
              -1.38888888888741095749e-03, 4.16666666666666019037e-02):  # fmt: skip
        k = k * z + c
    k = (k * z) * z + (1.0 - 0.5 * z)
    turn = quarter.astype(np.int64) & 3
    up, right = np.where(turn & 1, k, s), np.where(turn & 1, s, k)
    return np.where(turn & 2, -up, up).astype(F), np.where((turn == 1) | (turn == 2), -right, right).astype(F)


def array(tensor: Any) -> np.ndarray:
    return tensor.detach().float().numpy()


def norm(x: np.ndarray, module: Any) -> np.ndarray:
    """Layer norm, or RMS norm."""
    if isinstance(module, RMSNorm):
        return scaled(x, module.epsilon) * array(module.weight)
    centred = x - (lane_sum(x) / F(x.shape[-1]))[..., None]
    return scaled(centred, module.eps) * array(module.weight) + array(module.bias)


def scaled(x: np.ndarray, epsilon: float) -> np.ndarray:
    scale = F(1) / np.sqrt(lane_sum(x * x) / F(x.shape[-1]) + F(epsilon))
    return x * scale[..., None]


def silu(x: np.ndarray) -> np.ndarray:
    e = exponential(-np.abs(x))
    return x * (np.where(x < 0, e, F(1)) / (F(1) + e))


def quantized(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows `float32 [N, inputs]` -> int8 values as int64, and a scale each."""
    peak = np.abs(rows).max(-1)
    some = peak > F(1e-30)
    safe = np.where(some, peak, F(1))
    values = np.rint(rows * np.where(some, F(127) / safe, F(0))[:, None]).astype(np.int64)
    return values, np.where(some, peak / F(127), F(0)).astype(F)


def product(rows: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """`[N, inputs]`, `[outputs, inputs]` -> `[N, outputs]`."""
    scales = np.abs(weight).max(1) / F(127)
    values = np.rint(weight / np.where(scales > 0, scales, F(1))[:, None]).astype(np.int64)
    x, row_scales = quantized(rows)
    return ((x @ values.T).astype(F) * row_scales[:, None]) * scales


class Int8Model:
    """A model as the kernel decodes it. A sequence is a list of positions' keys and values, by layer."""

    model: Any
    c: Any

    def __init__(self, model: Stack):
        self.model, self.c = model, model.config
        self.head = self.c.width // self.c.heads
        half = self.head // 2
        with decimal.localcontext(decimal.Context(prec=25)):
            base = decimal.Decimal(self.c.rotary_base)
            self.turns = np.array([float(base ** (-decimal.Decimal(n) / half)) for n in range(half)])
        self.ids = array(model.ids.weight)
        parallel = model.spec.quantizers if isinstance(model, ParallelTransformer) else 1
        self.quantizers = model.spec.coarse if isinstance(model, FrameTransformer) else parallel
        self.rows = len(self.ids) // self.quantizers

    def features(self, fields: np.ndarray) -> np.ndarray:
        m: Any = self.model
        if isinstance(m, FrameTransformer):
            around = array(m.semantic.weight)[fields[:, 2:]].reshape(len(fields), -1)
            return product(around, array(m.context.weight))
        return array(m.streams.weight)[fields[:, 0]]

    def rotated(self, x: np.ndarray, positions: np.ndarray, scale: np.float32) -> np.ndarray:
        """Heads `[N, heads, W]` at positions `[N]`."""
        sine, cosine = sine_cosine(positions[:, None, None] * self.turns)
        a, b = x[..., : self.head // 2], x[..., self.head // 2 :]
        return np.concatenate([(a * cosine - b * sine) * scale, (b * cosine + a * sine) * scale], -1)

    def attend(self, q: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
        """One head: q `[N, W]`, keys and values `[L, W]` -> `[N, W]`."""
        scores = np.zeros((len(q), len(keys)), F)
        for n in range(self.head):
            scores = scores + keys[:, n] * q[:, n, None]
        padded = np.pad(scores, ((0, 0), (0, -len(keys) % 8)), constant_values=-np.inf)
        shares = exponential(padded - padded.max(-1)[:, None])
        scale, total = F(1) / lane_sum(shares), np.zeros_like(q)
        for n in range(len(keys)):
            total = total + values[n] * shares[:, n, None]
        return total * scale[:, None]

    def project(self, block: Any, x: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Queries `[N, heads, W]`, keys and values `[N, kv heads, W]` of rows `[N, width]` at positions `[N]`."""
        heads, kv_heads = self.c.heads, self.c.kv_heads
        qkv = product(norm(x, block.attention_norm), array(block.qkv.weight)).reshape(len(x), -1, self.head)
        queries, keys = qkv[:, :heads], qkv[:, heads : heads + kv_heads]
        if norms := getattr(block, "qk_norms", None):
            queries, keys = norm(queries, norms[0]), norm(keys, norms[1])
        queries = self.rotated(queries, positions, F(1) / np.sqrt(F(self.head)))
        return queries, self.rotated(keys, positions, F(1)), qkv[:, heads + kv_heads :]

    def finish(
        self, block: Any, x: np.ndarray, queries: np.ndarray, keys: np.ndarray, values: np.ndarray
    ) -> np.ndarray:
        """What becomes of rows `[N, width]` that attend to keys and values `[L, kv heads, W]`."""
        group = self.c.heads // self.c.kv_heads
        heads = (self.attend(queries[:, h], keys[:, h // group], values[:, h // group]) for h in range(self.c.heads))
        x = x + product(np.concatenate(list(heads), 1), array(block.output.weight))
        return x + product(self.feedforward(block, norm(x, block.feedforward_norm)), array(block.down.weight))

    def feedforward(self, block: Any, x: np.ndarray) -> np.ndarray:
        return gelu(product(x, array(block.up.weight)))

    def step(self, cache: list, ids: np.ndarray, features: np.ndarray, position: int) -> np.ndarray:
        """One more position: its hidden state `[width]`."""
        x = self.ids[ids[0]]
        for q in range(1, self.quantizers):
            x = x + self.ids[q * self.rows + ids[q]]
        x = (x + features)[None]
        for layer, block in enumerate(self.model.layers()):
            queries, *made = self.project(block, x, np.array([position]))
            if len(cache) <= layer:
                cache.append(made)
            else:
                cache[layer] = [np.concatenate(parts) for parts in zip(cache[layer], made, strict=True)]
            x = self.finish(block, x, queries, *cache[layer])
        return norm(x[0], self.model.norm)

    def fill(self, codes: np.ndarray, known: int, q: int, uniform: np.ndarray, sampling: StageSampling) -> np.ndarray:
        """A quantizer's codes of the frames of a window `int [Q, F]` behind those that are known, of all at once."""
        model: Any = self.model
        asked, ids, x = array(model.asked.weight), self.ids, np.zeros((codes.shape[1], self.c.width), F)
        for level, row in enumerate(codes):
            x = x + ids[np.where(row < 0, len(ids) - 1, level * self.rows + row)]
        x = x + asked[np.where(codes[q] < 0, q, self.quantizers)]
        for block in model.layers():
            x = self.finish(block, x, *self.project(block, x, np.arange(len(x))))
        logits = product(norm(x, model.norm)[known:], self.ids[q * self.rows : (q + 1) * self.rows])
        return np.array([draw(row, number, sampling) for row, number in zip(logits, uniform, strict=True)])

    def state(self, hidden: np.ndarray, before: np.ndarray, q: int) -> np.ndarray:
        if q == 0:
            return hidden
        level: Any = self.model.levels[q - 1]  # type: ignore[union-attr, index]
        both = np.concatenate([hidden, norm(before, level.codes_norm)])
        inner = gelu(product(both[None], array(level.up.weight)))
        return norm(hidden + product(inner, array(level.down.weight))[0], level.norm)

    def logits(self, state: np.ndarray, low: int, size: int) -> np.ndarray:
        return product(state[None], self.ids[low : low + size])[0]

    def read(self, ids: np.ndarray, features: np.ndarray, positions: np.ndarray) -> tuple[list, np.ndarray]:
        """A known part: its cache, and the hidden state of the last position."""
        cache: list = []
        for n in range(len(ids)):
            hidden = self.step(cache, ids[n], features[n], int(positions[n]))
        return cache, hidden

    def generate(
        self, item: Any, sampling: StageSampling, heats: Sequence[float] = ()
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ids `[steps, Q]` of an engine's item, and the hidden state before the first of them. `heats`: each step's
        factor of the temperature."""
        sequences = [item.sequence, *(item.guides if sampling.guidance else ())]
        known = [s.known for s in sequences]
        features = [self.features(s.fields.numpy()) for s in sequences]
        positions = [s.fields[:, 1].numpy() for s in sequences]
        ids = [s.ids.view(len(s.ids), -1).numpy() for s in sequences]
        read = [self.read(i[:k], f, p) for i, k, f, p in zip(ids, known, features, positions, strict=True)]
        caches, hidden = [cache for cache, _ in read], [state for _, state in read]
        first, steps = hidden[0], len(item.uniform)
        uniform, made = item.uniform.view(steps, -1).numpy(), np.zeros((steps, self.quantizers), np.int64)
        for n in range(steps):
            before = np.zeros(self.c.width, F)
            how = replace(sampling, temperature=sampling.temperature * heats[n]) if heats else sampling
            for q in range(self.quantizers):
                if q:
                    before = before + self.ids[(q - 1) * self.rows + made[n, q - 1]]
                low = q * self.rows + item.low[n]
                logits = [self.logits(self.state(h, before, q), low, item.size) for h in hidden]
                made[n, q] = item.low[n] + draw(guided(logits, sampling), uniform[n, q], how)
            if n + 1 < steps:
                for b in range(len(sequences)):
                    place = known[b] + n
                    hidden[b] = self.step(caches[b], made[n], features[b][place], int(positions[b][place]))
        return made, first


class Int8Decoder(Int8Model):
    """A Llama or Qwen3 decoder as the kernel decodes it."""

    def __init__(self, model: CodeDecoder):
        self.model, self.c, self.head, self.quantizers = model, model.config, model.config.head_width, 1
        self.turns = model.frequencies(torch.device("cpu")).double().numpy()
        self.ids, self.unembedding = array(model.ids.weight), array(model.unembedding)
        self.rows = len(self.ids)

    def features(self, fields: np.ndarray) -> np.ndarray:
        return np.zeros((len(fields), self.c.width), F)

    def feedforward(self, block: Any, x: np.ndarray) -> np.ndarray:
        gate, up = np.split(product(x, array(block.gate_up.weight)), 2, 1)
        return silu(gate) * up

    def logits(self, state: np.ndarray, low: int, size: int) -> np.ndarray:
        return product(state[None], self.unembedding[low : low + size])[0]


def guided(logits: list[np.ndarray], s: StageSampling) -> np.ndarray:
    own, *less = logits
    if not less:
        return own
    total = np.zeros_like(own)
    for share, part in zip(s.guide_weights, less, strict=True):
        total = total + F(share) * part
    return own + F(s.guidance) * (own - total)


def draw(logits: np.ndarray, uniform: np.float32, s: StageSampling) -> int:
    if s.temperature < 1e-6:
        return int(logits.argmax())
    weights = exponential((logits - logits.max()) / F(s.temperature))
    whole, least = np.trunc(weights * F(2**30)).astype(np.int64), 0
    if 0 < s.top_k < len(logits) or s.top_p < 1:
        ordered = np.sort(whole)[-s.top_k if 0 < s.top_k < len(logits) else 0 :]
        below = ordered.cumsum().astype(np.float64)
        over = (below > below[-1] * (1.0 - s.top_p)).nonzero()[0]
        least = ordered[over[0]] if len(over) else ordered[-1]
    reached = np.where(whole >= least, whole, 0).cumsum().astype(np.float64)
    return int(np.searchsorted(reached, reached[-1] * np.float64(uniform)))


def tokens(item: Any, made: np.ndarray) -> Tensor:
    """What the engine gives back of `made`."""
    return torch.from_numpy(made).view(item.uniform.shape)
