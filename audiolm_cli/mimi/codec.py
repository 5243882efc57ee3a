"""The codec Mimi: `transformers`' model, wrapped in one class."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from audiolm_cli.console import Tell
from audiolm_cli.errors import ModelError, UsageError
from audiolm_cli.language_models.tokens import Window
from audiolm_cli.public.codec import MimiConfig

PIECE_SECONDS = 30  # of new audio decoded at a time, with all the past it depends on: memory stays bounded
CONVOLUTIONS = 8  # frames, at least as many as the decoder's convolutions look back


def transformers() -> ModuleType:
    """The library; raises UsageError if it is not installed.

    It imports torchaudio if that is installed, only to read files, and fails if that was built for another torch.
    """
    try:
        import transformers.utils as utils
    except ImportError:
        raise UsageError("a language model over Mimi's codes needs transformers: pip install 'audiolm[mimi]'") from None
    available = utils.is_torchaudio_available
    utils.is_torchaudio_available = lambda: False
    try:
        import transformers.models.mimi.modeling_mimi
    finally:
        utils.is_torchaudio_available = available
    return transformers


class Mimi:
    """Audio to codes and back, `quantizers` codes a frame. Always float32, and one recording at a time, since the codes
    would depend on the others in a padded batch."""

    def __init__(self, folder: Path, config: MimiConfig, quantizers: int, device: torch.device):
        self.config, self.quantizers = config, quantizers
        library = transformers()
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
        try:
            self.model, found = library.models.mimi.modeling_mimi.MimiModel.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                attn_implementation="sdpa",
                output_loading_info=True,
            )
        except Exception as error:  # whatever the library raises for a file that does not fit
            raise ModelError(f"{folder}: not readable as Mimi ({' '.join(str(error).split())[:300]})") from error
        if wrong := sorted(map(str, found["missing_keys"] or found["unexpected_keys"])):
            raise ModelError(f"{folder}: tensor {wrong[0]} is missing, or does not belong there")
        self.model.to(device).eval().requires_grad_(False)
        self.device = device

    @torch.inference_mode()
    def encode(self, audio: Tensor, tell: Tell | None = None) -> Tensor:
        """Audio `float32 [T]`, whole frames -> codes `int64 [quantizers, F]`."""
        codes = self.model.encode(audio.to(self.device)[None, None], num_quantizers=self.quantizers).audio_codes[0]
        if tell:
            tell(codes.shape[1])
        return codes.cpu()

    def pieces(self, frames: float) -> Iterator[Window]:
        """The pieces in which that many frames are decoded: `(first, start, end)` yields the frames from start on, with
        those from first on as context. Endless if `frames` is infinite."""
        back, step = self.config.lookback + CONVOLUTIONS, round(PIECE_SECONDS * self.config.frame_rate)
        start, step = 0, step if frames > back else max(step, back)
        while start < frames:
            end = int(min(frames, start + step))
            yield max(0, start - back), start, end
            start = end

    @torch.inference_mode()
    def decode(self, codes: Tensor, skipped: int = 0) -> Tensor:
        """Codes `int64 [quantizers or fewer, F]` -> audio `float32 [T]`, without the first `skipped` frames."""
        audio: Tensor = self.model.decode(codes[None].to(self.device)).audio_values[0, 0]
        return audio[skipped * self.config.samples_per_frame :].cpu()
