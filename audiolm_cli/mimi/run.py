"""A batch on its way through one language model over Mimi's codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from audiolm_cli.language_models.stages import REFERENCE_SECONDS
from audiolm_cli.mimi.continuing import ANCHOR_SHARE, continue_codes
from audiolm_cli.mimi.model import MimiBackend
from audiolm_cli.pipeline import Output, Run, run_for, spoken_stretch
from audiolm_cli.token_file import Tokens


@run_for.register(MimiBackend)
def _(bundle: MimiBackend) -> type[Run]:
    return MimiRun


@dataclass
class MimiRun(Run):
    """Codes are continued all at once, and decoded."""

    def extend(
        self, known: Sequence[Tokens], new_tokens: int, lookahead: int = 0
    ) -> tuple[list[Output], list[list[float]]]:
        config, codes = self.bundle.config, [tokens.codes for tokens in known]
        totals = [k.shape[1] + new_tokens for k in codes]
        count = sum(totals) - sum(k.shape[1] for k in codes)
        with self.clock.stage("codes", count * config.tokens.quantizers) as tell:
            anchors = self._once(lambda n: self._anchor(n, codes[n].shape[1]))
            how = self.noise, self.sampling.stage("semantic"), self._together(), tell
            made = continue_codes(self.bundle.model, codes, totals, anchors, config.window, *how)
        with self.clock.stage("decode", sum(totals)) as tell:
            audio = [self.bundle.codec.decode(code, tell).numpy() for code in made]
        clock = self.clock
        return [
            Output(waveform, code[0], code, stage_seconds=clock.seconds, stage_tokens=clock.tokens)
            for waveform, code in zip(audio, made, strict=True)
        ], [[] for _ in known]

    def _together(self) -> int:
        """How many outputs are decoded at a time: in float32 on a CPU one, since a single row takes a third of the time
        of the four that rows would be padded to, so that they do not depend on each other."""
        model = self.bundle.model
        return 1 if self.bundle.device.type == "cpu" and not model.packed else self.batch_size

    def _anchor(self, n: int, frames: int) -> tuple[int, int]:
        """First frame and end of what stays in front of later windows: of a prompt's so many frames those that are
        fullest of speech, or, without a prompt, what is made first."""
        spec = self.bundle.config.tokens
        seconds = min(REFERENCE_SECONDS, self.bundle.config.window // ANCHOR_SHARE / spec.semantic_rate)
        if not frames:
            return 0, round(seconds * spec.semantic_rate)
        waveform = self.prompts[n].waveform
        return spoken_stretch(waveform[len(waveform) - frames * spec.samples_per_frame :], spec, seconds)
