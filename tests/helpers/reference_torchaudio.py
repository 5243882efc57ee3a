"""What the program has of its own and torchaudio as well, to be compared.

torchaudio 2.11.0, its last release, is a CUDA build: beside a CPU-only torch `import torchaudio` raises OSError, beside
a torch for another CUDA version RuntimeError. Its Python code works once its compiled extension is kept out, which the
stand-in module below does.
"""

from __future__ import annotations

import sys
import types

if "torchaudio" not in sys.modules:
    _stand_in = types.ModuleType("torchaudio._extension")
    _stand_in._IS_TORCHAUDIO_EXT_AVAILABLE = False  # type: ignore[attr-defined]
    _stand_in.fail_if_no_align = lambda function: function  # type: ignore[attr-defined]
    sys.modules["torchaudio._extension"] = _stand_in

from torchaudio.functional import melscale_fbanks
from torchaudio.models.conformer import ConformerLayer

__all__ = ["ConformerLayer", "melscale_fbanks"]
