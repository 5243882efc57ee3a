"""Measures the quality of a bundle on the validation split: `make eval`.

    python -m audiolm_cli.training.evaluation.evaluate --data DATA [--model weights/speech] [--quick] [--json FILE]
    python -m audiolm_cli.training.evaluation.evaluate --data CORPUS --runs RUNS --model weights/piano

Sections: the codec against Opus; the semantic tokens against MFCC k-means; bits per token of every stage against
unigram and bigram; words against pseudo-words; real tokens against synthetic ones; continuations of 3 s by 7 s against
four trivial baselines, the words recognised in them and across the join, the sound between the words, and the end of
long ones; resynthesis against the source itself. For piano: codec, bits per token, continuations of 4 s by 6 s and by
30 s against trivial baselines and the acoustic stages alone, the noise behind single notes, and resynthesis. For
both: the watermark's robustness and the classifier's accuracy. Seeds are fixed; intervals in parentheses are 95 % by
bootstrap over speakers, or pieces. Needs the extra `eval`, and for all rows Debian's packages opus-tools, flite,
ffmpeg, fluidsynth and fluid-soundfont-gm.

Settings are chosen on one half of the validation speakers and reported on the other (`data.half`): with --sampling or
--best-of prompts and sources come from the tuning half, otherwise from the testing half.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads on a busy machine cost 10-30x

import numpy as np

from audiolm_cli.bundles import bundle as bundles
from audiolm_cli.errors import AudioLMError, InputError
from audiolm_cli.training.corpora.data import HALVES, load_corpus
from audiolm_cli.training.evaluation import language_models, piano, speech, watermark_robustness
from audiolm_cli.training.evaluation.setting import (
    SEED,
    Setting,
    of_corpus,
    samplings,
    say,
    training_tokens,
)
from audiolm_cli.training.evaluation.tables import Table, plain, show
from audiolm_cli.training.measures import phones, speakers, words
from audiolm_cli.training.measures.measures import (
    MUSIC_MEASURES,
    RATE,
    SPEECH_MEASURES,
    Figure,
    autoencoder,
    clips_per_speaker,
    codec_figures,
    opus_rows,
)
from audiolm_cli.training.parts import detector as detectors
from audiolm_cli.training.parts import detector_data

SPEECH = (  # sections
    "codec", "tokenizer", "bits", "words", "synthetic", "continuation", "spoken", "join", "pauses", "long",
    "resynthesis", "marks", "detector",
)  # fmt: skip
PIANO = ("codec", "bits", "music", "long", "notes", "resynthesis", "marks", "detector")


def codec_tables(setting: Setting) -> dict[str, Table]:
    """PESQ, STOI, DNSMOS and log-mel distance at the full and the coarse rate, by corpus; for music, log-mel distance
    and spectral convergence."""
    spec, tables = setting.bundle.config.tokens, {}
    corpora, measures = (
        (("piano",), MUSIC_MEASURES) if setting.piano else (("librispeech", "commonvoice"), SPEECH_MEASURES)
    )
    for corpus in corpora:
        clips = clips_per_speaker(of_corpus(setting.validation, corpus), 1 if setting.quick else 3)
        clips = clips[: 20 if setting.quick else 60]
        if not clips:
            continue
        rows: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
        for count in (spec.quantizers, spec.coarse):
            rate = count * np.log2(spec.codebook_size) * spec.sample_rate / spec.samples_per_frame / 1000
            rows[f"codec, {rate:g} kbit/s"] = autoencoder(setting.bundle.codec, count)
        if not (opus := opus_rows()):
            say("opus-tools is not installed: no rows for Opus")
        whose = f"{corpus} {'pieces' if setting.piano else 'speakers'}"
        title = f"codec on {len(clips)} clips of {len({c.speaker for c in clips})} {whose}"
        tables[title] = {
            name: codec_figures(reconstruct, clips, measures) for name, reconstruct in (rows | opus).items()
        }
    return tables


def tokenizer_tables(setting: Setting) -> dict[str, Table]:
    """Phone information, speaker probe, codes in use and bits per second, beside MFCC k-means of the same K."""
    vocabulary = setting.bundle.config.tokens.semantic_vocabulary
    spoken = phones.spoken_clips(setting.validation, setting.cache, limit=100 if setting.quick else None)
    probed = speakers.probe_clips([setting.training, setting.validation])
    rows: Table = {}
    for name, tokenize in (
        ("semantic tokens", phones.as_function(setting.bundle.tokenizer)),
        ("MFCC k-means", phones.mfcc_tokenizer(setting.training, vocabulary, seconds=1000 if setting.quick else 4000)),
    ):
        found = phones.phone_information(tokenize, spoken)
        named, chance = speakers.speaker_probe(tokenize, probed)
        rows[name] = {
            "phone information": Figure(found["information"], found["low"], found["high"]),
            "less bias": found["corrected"],
            "speaker probe": named,
            "chance": chance,
            "codes used": found["codes"],
            "bits/s": found["bits_per_second"],
        }
    seconds = found["seconds"]
    return {f"tokenizer, K = {vocabulary}, on {seconds / 60:.0f} minutes of {len(spoken)} clips": rows}


def bits_tables(setting: Setting) -> dict[str, Table]:
    """Bits per token by stage and quantizer, and the effect of conditioning on stage 2."""
    training, crops = training_tokens(setting), 32 if setting.quick else 96
    validation = language_models.bundle_tokens(setting.bundle, setting.validation, "valid", setting.cache)
    rows = language_models.stage_bits(setting.bundle, validation, training, crops)
    effects = language_models.conditioning_effects(setting.bundle, validation, crops)
    return {
        "bits per token": rows,
        "stage 2, bits per token: own, and the rise with another speaker's": {"coarse": effects},
    }


def word_tables(setting: Setting) -> dict[str, Table]:
    """Whether stage 1 prefers spoken words to pseudo-words of the same sounds; 0.5 is chance."""
    count = 40 if setting.quick else 200
    try:
        rows = words.word_table(setting.bundle, setting.training, setting.cache, count)
    except InputError as error:
        say(str(error))
        return {}
    return {"words against pseudo-words of the same sounds, spoken by flite; chance 0.5": rows}


def known_outputs(setting: Setting) -> list[tuple[str, np.ndarray]]:
    """Outputs of all commands with many settings, each with the corpus of its voice; fewer for quick figures."""
    bundle, runs, batches = setting.bundle, setting.cache.parent, 2 if setting.quick else detector_data.VALID_BATCHES
    say("outputs of the bundle")
    detector_data.complete(bundle, setting.validation, runs, "valid", batches)
    return detector_data.load_outputs(runs, "valid", bundle, setting.validation)


def mark_tables(setting: Setting) -> dict[str, Table]:
    """The watermark's cost in quality, and its robustness."""
    made, marker = (
        [output for _, output in known_outputs(setting)],
        watermark_robustness.Ours(setting.bundle.config.name),
    )
    real = watermark_robustness.recordings(
        [setting.validation, setting.training], 300 if setting.quick else watermark_robustness.RECORDED
    )
    rows = watermark_robustness.survival(marker, made, real, watermark_robustness.handlings(setting.bundle.codec))
    return {
        f"watermark of {len(made)} outputs": {marker.name: watermark_robustness.cost(marker, made)},
        f"watermark in 2 s, found from {marker.threshold} on": dict(rows),
    }


def detector_tables(setting: Setting) -> dict[str, Table]:
    """The classifier's accuracy on outputs and recordings."""
    bundle, made = setting.bundle, known_outputs(setting)
    if bundle.detector is None:
        return {}
    listen = functools.partial(bundle.detector.features, bundle)
    held = detectors.items(bundle, listen, setting.validation, made, SEED, 0.0)
    count = 10 if setting.quick else 40
    return {
        f"classifier: share called generated, of {len(held)} stretches": dict(detectors.figures(bundle.detector, held)),
        f"classifier: the same of {count} recordings of 6 s and their continuations by 6 s": {
            "with the defaults": detectors.joins(bundle, setting.validation, count)
        },
    }


def evaluate(setting: Setting, sections: Sequence[str]) -> dict[str, Table]:
    """Runs the sections, printing each table as soon as it is ready."""
    domain = piano if setting.piano else speech
    makers = {
        "codec": codec_tables,
        "tokenizer": tokenizer_tables,
        "bits": bits_tables,
        "words": word_tables,
        "synthetic": speech.synthetic_tables,
        "continuation": speech.continuation_tables,
        "spoken": speech.spoken_tables,
        "join": speech.join_tables,
        "pauses": speech.pause_tables,
        "long": domain.long_tables,
        "resynthesis": domain.resynthesis_tables,
        "music": piano.music_tables,
        "notes": piano.note_tables,
        "marks": mark_tables,
        "detector": detector_tables,
    }
    tables: dict[str, Table] = {}
    for section in sections:
        say(f"measuring: {section}")
        for title, table in makers[section](setting).items():
            show(title, table)
            tables[title] = table
    return tables


def which_half(options: argparse.Namespace, of_piano: bool) -> str:
    """The requested half, or the default: settings are swept on the tuning half."""
    if of_piano:
        return "both"
    return str(options.half or ("tuning" if options.sampling or options.best_of else "testing"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures the quality of a bundle on the validation split.")
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.tsv")
    parser.add_argument("--model", default="weights/speech", help="name or folder of a bundle")
    parser.add_argument("--runs", type=Path, default=Path("runs/speech"), help="folder for caches")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quick", action="store_true", help="fewer clips and 20 prompts: minutes, wide intervals")
    parser.add_argument(
        "--prompts", type=int, help="continuations to make (default 100, of a piano 40; 20 with --quick)"
    )
    parser.add_argument("--sections", nargs="+", choices=dict.fromkeys(SPEECH + PIANO), help="default: all that fit")
    parser.add_argument(
        "--sampling",
        nargs="+",
        default=[],
        help='continuations with these instead of the defaults, such as {"guidance": 2}: a row each',
    )
    parser.add_argument("--best-of", type=int, nargs="+", default=[], help="also with so many candidates: a row each")
    parser.add_argument(
        "--half", choices=(*HALVES, "both"), help="of the speakers whose recordings are continued or said again"
    )
    parser.add_argument("--text", type=Path, help="folder of books, some held out, for the words' perplexity")
    parser.add_argument("--synthetic", type=Path, help="folder of the synthetic speech that stage 1 was trained on")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    options = parser.parse_args()
    audio = options.runs / "audio"
    try:
        bundle = bundles.load(options.model, device=options.device, dtype=options.dtype)
        of_piano = bundle.config.domain == "piano"
        setting = Setting(
            bundle=bundle,
            training=load_corpus(options.data, "train", RATE, audio),
            validation=load_corpus(options.data, "valid", RATE, audio),
            cache=options.runs / "eval",
            quick=options.quick,
            prompts=options.prompts or (20 if options.quick else 40 if of_piano else 100),
            samplings=samplings(bundle, options.sampling),
            best_of=options.best_of,
            half=which_half(options, of_piano),
            text=options.text,
            synthetic=options.synthetic,
        )
        tables = evaluate(setting, options.sections or (PIANO if of_piano else SPEECH))
    except AudioLMError as error:
        sys.exit(f"evaluate: {error}")
    except ImportError as error:
        sys.exit(f"evaluate: {error}; `make eval` installs what is needed")
    if options.json:
        report = {
            "bundle": setting.bundle.config.name,
            "identity": setting.bundle.identity,
            "seed": SEED,
            "half": setting.half,
        }
        options.json.write_text(json.dumps({**report, "tables": plain(tables)}, indent=2) + "\n")


if __name__ == "__main__":
    main()
