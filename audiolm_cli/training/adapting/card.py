"""The model card of an adapted bundle, written from the figures of its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from audiolm_cli.training.adapting.recordings import shares

CONSENT = "a voice belongs to a person: train on somebody's recordings, and use the bundle, only with their consent"


def card(
    name: str, source: str, identity: str, licence: str, found: Mapping[str, Any], stages: Mapping[str, Any],
    samples: Sequence[tuple[str, str]], bits: str, detector: bool, curve: bool,
) -> str:  # fmt: skip
    """The text of README.md. `found` comes from `recordings.as_json`, `stages` has a `stages.Result` as JSON for each
    trained stage, `samples` are pairs of files, before and after; `bits` is the watermark's message."""
    minutes, trained = found["minutes"], {k: v for k, v in stages.items() if v["kept"]}
    figures = ", ".join(f"{k} {v['before']:.3f} to {v['after']:.3f} bits" for k, v in trained.items())
    lines = [
        "---",
        f"license: {licence}",
        f"figures: {figures or 'validation shows no change'}",
        "---",
        "",
        f"# {name}",
        "",
        f"Made by `audiolm train` from the bundle {source}, fine-tuned on {minutes.get('usable', 0):.1f} minutes of "
        "recordings. Tokenizer, codec and detector are that bundle's, so tokens mean the same in both. LICENSE is that "
        "of its weights.",
        "",
        f"Consent: {CONSENT}.",
        "",
        "## Recordings",
        "",
        f"{shares(minutes)}, in files: {found['recordings']}; level {found['level_dbfs']:.0f} dBFS, bandwidth "
        f"{found['bandwidth_hz'] / 1000:.1f} kHz. Training used {found['training_minutes']:.1f} minutes; the ends "
        f"of the recordings, {found['validation_minutes']:.1f} minutes, were held out for validation.",
        "",
        "## Figures",
        "",
        "Bits per token on the validation recordings, lower is better, with the weights as stored:",
        "",
        "| stage | before | after | steps | minutes |",
        "|---|---|---|---|---|",
        *(
            f"| {k} | {v['before']:.3f} | {v['after']:.3f}{'' if v['kept'] else ' (left unchanged)'} | {v['steps']} | "
            f"{v['minutes']:.1f} |"
            for k, v in stages.items()
        ),
        "",
        *(["![Bits per token over the minutes of training](training.png)", ""] if curve else []),
        *_heard(samples),
        "## Watermark",
        "",
        f"Outputs carry a watermark of this bundle's own name, {bits}.",
    ]
    if detector:
        lines[-1] += (
            f" The classifier of `audiolm detect -m` this bundle was trained on outputs of {source}, not on those of "
            "this bundle, of which it may find fewer."
        )
    return "\n".join([*lines, "", f"Begun from the weights {identity[:16]}.", ""])


def _heard(samples: Sequence[tuple[str, str]]) -> list[str]:
    if not samples:
        return []
    pairs = [f"- [{before}]({before}), [{after}]({after})" for before, after in samples]
    return ["Validation recordings continued with the same seed, before and after:", "", *pairs, ""]
