"""The model card of an adapted bundle, written from the figures of its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from audiolm_cli.provenance import watermark
from audiolm_cli.training.adapting.recordings import shares

CONSENT = "a voice belongs to a person: train on somebody's recordings, and use the bundle, only with their consent"
UNITS = {**dict.fromkeys(("semantic", "coarse", "fine"), "bits"), "decoder": "mel distance"}  # of figures


@dataclass(frozen=True)
class SourceBundle:
    """The bundle that was fine-tuned. `detector`: whether it has one."""

    name: str
    identity: str
    licence: str
    detector: bool


def card(
    name: str,
    source: SourceBundle,
    found: Mapping[str, Any],
    results: Mapping[str, Any],
    samples: Sequence[tuple[str, str]],
    curve: bool,
) -> str:
    """The text of README.md of the bundle `name`. `found` comes from `recordings.as_json`, `results` has a
    `fitting.FittingResult` as JSON for each trained stage, and for the decoder if it was trained; `samples` are pairs
    of files, before and after; `curve`: whether the training curve was drawn."""
    minutes, trained = found["minutes"], {k: v for k, v in results.items() if v["kept"]}
    figures = ", ".join(f"{k} {v['before']:.3f} to {v['after']:.3f} {UNITS[k]}" for k, v in trained.items())
    frozen = "Tokenizer, codec and detector"
    if "decoder" in trained:
        frozen = "Tokenizer, detector, and of the codec encoder and codebooks"
    heading = "Bits per token of the stages"
    if "decoder" in results:
        heading += ", and the mel distance of recordings from what the decoder makes of their codes,"
    lines = [
        "---",
        f"license: {source.licence}",
        f"figures: {figures or 'validation shows no change'}",
        "---",
        "",
        f"# {name}",
        "",
        f"Made by `audiolm train` from the bundle {source.name}, fine-tuned on {minutes.get('usable', 0):.1f} minutes "
        f"of recordings. {frozen} are that bundle's, so tokens mean the same in both. LICENSE is that of its weights.",
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
        f"{heading} on the validation recordings, lower is better, with the weights as stored:",
        "",
        "| part | before | after | steps | minutes |",
        "|---|---|---|---|---|",
        *(
            f"| {k} | {v['before']:.3f} | {v['after']:.3f}{'' if v['kept'] else ' (left unchanged)'} | {v['steps']} | "
            f"{v['minutes']:.1f} |"
            for k, v in results.items()
        ),
        "",
        *(["![These figures over the minutes of training](training.png)", ""] if curve else []),
        *_heard(samples),
        "## Watermark",
        "",
        f"Outputs carry a watermark of this bundle's own name, {watermark.bits(watermark.bundle_id(name))}.",
    ]
    if source.detector:
        lines[-1] += (
            f" The classifier of `audiolm detect -m` this bundle was trained on outputs of {source.name}, not on those "
            "of this bundle, of which it may find fewer."
        )
    return "\n".join([*lines, "", f"Begun from the weights {source.identity[:16]}.", ""])


def _heard(samples: Sequence[tuple[str, str]]) -> list[str]:
    if not samples:
        return []
    pairs = [f"- [{before}]({before}), [{after}]({after})" for before, after in samples]
    return ["Validation recordings continued with the same seed, before and after:", "", *pairs, ""]
