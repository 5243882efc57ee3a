"""What tests share: places, sounds, processes, stand-ins, tiny bundles and references."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "prompt.flac"
