"""Stage 3 in the layout `parallel` by the native kernel: the codes of windows, quantizer by quantizer.

Threads take different windows; each call does one quantizer of a window, so that sampling can be interrupted.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from audiolm_cli import native
from audiolm_cli.language_models.sampling import StageSampling
from audiolm_cli.language_models.tokens import Infill
from audiolm_cli.native.decode import check
from audiolm_cli.native.model import Weights, pointer


class WindowFilling:
    """A window being filled by the kernel; its first `coarse` quantizers are complete."""

    def __init__(self, weights: Weights, coarse: int, filling: Infill, sampling: StageSampling):
        self.weights, self.sampling, self.kept, self.next = weights, sampling, filling.kept, coarse
        self.codes = np.ascontiguousarray(filling.codes.numpy(), np.int32)
        self.known = filling.known
        made = self.codes.shape[1] - self.known
        if len(self.codes) != weights.model.quantizers or filling.uniform.numel() != made * (len(self.codes) - coarse):
            raise ValueError("a window has codes of every quantizer, and a number for each that is made")
        self.uniform = np.ascontiguousarray(filling.uniform.view(made, -1).T.numpy(), np.float32)

    def advance(self) -> int:
        """Samples the codes of one more quantizer; returns how many are kept, 0 if done. Raises ModelError."""
        model, s, number = self.weights.model, self.sampling, self.next - len(self.codes) + len(self.uniform)
        if self.next == len(self.codes):
            return 0
        window = native.Window(self.codes.shape[1], self.known, pointer(self.codes), pointer(self.uniform[number]))
        how = native.Sampling(s.temperature, s.top_p, s.top_k, model.vocabulary)
        check(self.weights.library.audiolm_fill(model, window, how, self.next))
        self.next += 1
        return self.kept


def fill(
    weights: Weights,
    coarse: int,
    fillings: list[Infill],
    sampling: StageSampling,
    progress: Callable[[int], None] | None = None,
) -> list[Tensor]:
    """Samples the fine codes of windows, `int64 [fine, made]` each; `progress` gets the numbers of kept codes. On
    return, even after an error, no thread is inside the kernel."""
    windows = [WindowFilling(weights, coarse, filling, sampling) for filling in fillings]
    with ThreadPoolExecutor(max(1, min(torch.get_num_threads(), len(windows)))) as pool:
        while made := sum(pool.map(WindowFilling.advance, windows)):
            if progress:
                progress(made)
    return [torch.from_numpy(window.codes[coarse:, window.known :].astype(np.int64)) for window in windows]
