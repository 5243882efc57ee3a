"""A batch's run through one language model over Mimi's codes."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from audiolm_cli.config import TokenSpec
from audiolm_cli.console import Tell
from audiolm_cli.language_models.pauses import PauseLimit
from audiolm_cli.language_models.stages import REFERENCE_SECONDS, StageContext
from audiolm_cli.mimi.continuing import ANCHOR_SHARE, CodeStage
from audiolm_cli.mimi.model import MimiBackend
from audiolm_cli.pipeline import spoken_stretch, token_levels
from audiolm_cli.rendering import Chunk, Run, run_for
from audiolm_cli.token_file import Tokens

LOUD, FAR = 95, 30.0  # percentile of a prompt's levels, and how far below it a pause is (dB)


@run_for.register(MimiBackend)
def _(bundle: MimiBackend) -> type[Run]:
    return MimiRun


@dataclass
class MimiRun(Run):
    """Codes are continued as far as the next piece of audio needs them."""

    def extended(
        self, known: Sequence[Tokens], new_tokens: float, resampled: int = 0
    ) -> Iterator[tuple[int, Chunk, bool]]:
        codes = [tokens.codes for tokens in known]
        totals = [k.shape[1] + new_tokens for k in codes]
        anchors = self.once(lambda n: self._anchor(n, codes[n].shape[1]))
        limits = self._pause_limits([tokens.semantic for tokens in known])
        count = len(codes) * new_tokens * self.bundle.config.tokens.quantizers
        told, timed = self.clock.counted("codes", count), functools.partial(self.clock.timed, "codes")
        context = StageContext(self.noise, self.sampling.stage("semantic"), self._together(), told, timed)
        tell = self.clock.counted("decode", sum(totals))
        for first in range(0, len(codes), context.batch_size):
            part = slice(first, first + context.batch_size)
            parts = codes[part], totals[part], anchors[part]
            own = replace(context, noise=self.noise[part])
            stage = CodeStage(self.bundle.model, *parts, self.bundle.config.window, own, limits[part])
            for n, chunk, last in self._decoded(stage, tell):
                yield first + n, chunk, last

    def _decoded(self, stage: CodeStage, tell: Tell) -> Iterator[tuple[int, Chunk, bool]]:
        codec = self.bundle.codec
        for buffer in stage.buffers:
            buffer.release("decode", 0)
        for pieces in itertools.zip_longest(*(codec.pieces(stage.limit(n)) for n in range(len(stage.buffers)))):
            stage.extend_to([piece[2] if piece else 0 for piece in pieces])
            for n, (first, start, end) in ((n, piece) for n, piece in enumerate(pieces) if piece):
                codes = stage.buffers[n].slice(first, end)
                stage.buffers[n].release("decode", first)
                with self.clock.timed("decode"):
                    audio = codec.decode(codes, start - first).numpy()
                tell(end - start)
                codes = codes[:, start - first :]
                yield n, Chunk(audio, codes[0], codes), end == stage.limit(n)

    def _together(self) -> int:
        """The engine's batch size. On a CPU in float32 it is 1: a single row takes a third of the time of the four to
        which batches would be padded for batch invariance."""
        model = self.bundle.model
        return 1 if self.bundle.device.type == "cpu" and not (model.packed or model.native) else self.batch_size

    def _pause_limits(self, known: Sequence[Tensor]) -> list[PauseLimit]:
        """Each prompt's limit of pauses, if there is one. No list of codes says which stand for silence: those of quiet
        sounds do, and those that the prompt's own pauses have."""
        config, seconds = self.bundle.config, self.request.pause_limit(self.bundle.config)
        if seconds == math.inf:
            return []

        def limit(n: int) -> PauseLimit:
            quiet = self.bundle.quiet_codes | quiet_codes(self.prompts[n].waveform, known[n], config.tokens)
            return PauseLimit.of(quiet, seconds, config.tokens.semantic_rate)

        return self.once(limit)

    def _anchor(self, n: int, frames: int) -> tuple[int, int]:
        """First frame and end of the anchor that stays in front of later windows: the part with the most speech of a
        prompt of `frames` frames, or, without a prompt, the first frames sampled."""
        spec = self.bundle.config.tokens
        seconds = min(REFERENCE_SECONDS, self.bundle.config.window // ANCHOR_SHARE / spec.semantic_rate)
        if not frames:
            return 0, round(seconds * spec.semantic_rate)
        waveform = self.prompts[n].waveform
        return spoken_stretch(waveform[len(waveform) - frames * spec.samples_per_frame :], spec, seconds)


def quiet_codes(waveform: np.ndarray, codes: Tensor, spec: TokenSpec) -> frozenset[int]:
    """The codes `int64 [F]` at the end of a waveform that only quiet frames have: FAR below its loud ones, and no frame
    that is louder."""
    if not len(codes):
        return frozenset()
    levels = token_levels(waveform[len(waveform) - len(codes) * spec.samples_per_semantic :], spec)
    quiet = levels < np.percentile(levels, LOUD) - FAR
    return frozenset(codes[quiet].tolist()) - frozenset(codes[~quiet].tolist())
