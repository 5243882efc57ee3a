"""What stage 3 asks for in the layout `parallel`, by the native kernel: the codes of windows, quantizer by quantizer.

Threads take different items, one quantizer of a window each time, so that all of them can be interrupted.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from audiolm_cli import native
from audiolm_cli.language_models.sampling import StageSampling
from audiolm_cli.language_models.tokens import Window, settled
from audiolm_cli.native.decode import check
from audiolm_cli.native.model import Weights, pointer


@dataclass
class Filling:
    """An item on its way through the kernel: codes `int32 [Q, F]`, complete in the first `coarse` quantizers, in which
    windows are made one after the other, with numbers `float32 [fine, frames]` for each."""

    weights: Weights
    codes: np.ndarray
    coarse: int
    windows: list[Window]
    uniform: list[np.ndarray]
    sampling: StageSampling
    done: int = 0  # windows and quantizers

    def advance(self) -> int:
        """Makes one quantizer of a window; how many codes of it stay, 0 when all is done. Raises ModelError."""
        model, s = self.weights.model, self.sampling
        number, q = divmod(self.done, model.quantizers - self.coarse)
        if number == len(self.windows):
            return 0
        first, made, end = self.windows[number]
        if q == 0:
            self.codes[self.coarse :, made:end] = -1
        codes, uniform = np.ascontiguousarray(self.codes[:, first:end]), np.ascontiguousarray(self.uniform[number][q])
        if codes.shape[0] != model.quantizers or len(uniform) != end - made:
            raise ValueError("a window has codes of every quantizer, and a number for each that is made")
        window = native.Window(end - first, made - first, pointer(codes), pointer(uniform))
        how = native.Sampling(s.temperature, s.top_p, s.top_k, model.vocabulary)
        check(self.weights.library.audiolm_fill(model, window, how, self.coarse + q))
        self.codes[self.coarse + q, made:end] = codes[self.coarse + q, made - first :]
        self.done += 1
        return settled(self.windows, number)


def fill(fillings: list[Filling], progress: Callable[[int], None] | None = None) -> list[Tensor]:
    """The completed codes of all items, `int64 [Q, F]`; `progress` is told how many have been made. Ends with no thread
    inside the kernel, whatever happens."""
    with ThreadPoolExecutor(max(1, min(torch.get_num_threads(), len(fillings)))) as pool:
        while made := sum(pool.map(Filling.advance, fillings)):
            if progress:
                progress(made)
    return [torch.from_numpy(filling.codes.astype(np.int64)) for filling in fillings]
