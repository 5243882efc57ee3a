"""Draws the training curves of a run's parts, from their log.jsonl, as one PNG for the model card.

    python -m audiolm_cli.training.evaluation.curves --runs runs/speech --out weights/speech/training.png

Needs matplotlib (extra `plot`).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

# part -> its figure's name in the log in training, if there is one, and in validation, and on the axis
PARTS: dict[str, tuple[str | None, str, str]] = {
    "codec": ("mel", "mel_all", "mel distance"),
    "decoder": (None, "pauses", "correlation at 20 ms, quiet parts"),
    "tokenizer": ("masked_loss", "masked_loss", "loss on masked tokens, nats"),
    "student": ("accuracy_1024", "accuracy_1024", "the teacher's labels found"),
    "semantic": ("bits", "bits", "bits per token"),
    "coarse": ("bits", "bits", "bits per token"),
    "fine": ("bits", "bits", "bits per token"),
}

Curve = tuple[list[float], list[float]]  # minutes, values


def curves(log: Path, training: str | None, validation: str) -> tuple[Curve, Curve]:
    """The two figures in a log, over the minutes trained."""
    found: tuple[Curve, Curve] = ([], []), ([], [])
    for line in log.read_text().splitlines():
        values = json.loads(line)
        valid = values.get("valid", False)
        if (key := validation if valid else training) in values:
            minutes, figures = found[valid]
            minutes.append(values["seconds"] / 60)
            figures.append(values[key])
    return found


def draw(runs: Path, out: Path) -> list[str]:
    """Draws the picture and returns the parts in it: those with a log in `runs`."""
    from matplotlib.figure import Figure

    parts = [part for part in PARTS if (runs / part / "log.jsonl").is_file()]
    if not parts:
        return []
    figure = Figure(figsize=(3.2 * len(parts), 2.6), layout="constrained")
    for axes, part in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts, strict=True):
        training, validation, name = PARTS[part]
        seen, unseen = curves(runs / part / "log.jsonl", training, validation)
        axes.plot(*seen, linewidth=0.8, label="training")
        axes.plot(*unseen, "o-", markersize=3, label="validation")
        axes.set(title=part, xlabel="minutes", ylabel=name)
        axes.legend(fontsize="x-small")
    figure.savefig(out, format="png", dpi=80)
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description="Training curves of a run's parts as one PNG.")
    parser.add_argument("--runs", type=Path, default=Path("runs/speech"))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if not draw(options.runs, options.out):
        sys.exit(f"curves: {options.runs}: no part's log.jsonl there")


if __name__ == "__main__":
    main()
