"""How much semantic tokens tell about the phones spoken. For evaluation only: training never sees a transcript.

Phones come from forced alignment of the known transcripts with pocketsphinx (US English model, CMU dictionary). The
figure is phone-normalised mutual information, I(phone; token) / H(phone), as in HuBERT (Hsu et al., 2021, section 4.2):
the share of the uncertainty about the phone that the token removes. It grows with the number of codes K and with too
little data, so compare it with k-means over MFCC, HuBERT's first target, with the same K on the same clips.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from audiolm_cli.codebook import nearest
from audiolm_cli.tokenizer.semantic import SemanticTokenizer
from audiolm_cli.training import RATE
from audiolm_cli.training.corpora.data import Corpus
from audiolm_cli.training.measures.measures import bootstrap
from audiolm_cli.training.parts.kmeans import kmeans

TOKEN_SAMPLES = 640  # 25 labels per second
ALIGNER_FRAME = 160  # samples: pocketsphinx labels 100 frames per second, each from a window of 410 samples
_PHONES = "SIL AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH"
PHONES = tuple(_PHONES.split())  # of the CMU dictionary, silence first

Tokenize = Callable[[np.ndarray], np.ndarray]  # float32 [T] at 16 kHz -> int [S], 25/s


@dataclass(frozen=True)
class Spoken:
    """A recording with its phones: `samples` float32 [T], 16 kHz; `phones` int64 [T // 640], indices into PHONES."""

    speaker: str
    samples: np.ndarray
    phones: np.ndarray


def spoken_clips(corpus: Corpus, cache: Path, limit: int | None = None) -> list[Spoken]:
    """The clips of a corpus whose transcripts can be aligned, at most `limit` of them, evenly spread.

    Alignments are cached in `cache`/phones.json. Skips clips without a transcript, with a word missing from the
    dictionary, or whose alignment failed. Raises ImportError without pocketsphinx (extra `eval`).
    """
    clips = [clip for clip in corpus.clips if clip.text]
    if limit is not None and len(clips) > limit:
        clips = [clips[i] for i in np.linspace(0, len(clips) - 1, limit).astype(int)]
    store = cache / "phones.json"
    known = json.loads(store.read_text()) if store.is_file() else {}
    missing = [clip for clip in clips if known.get(clip.path, {}).get("text") != clip.text]
    if missing:
        align = aligner()
        for clip in missing:
            known[clip.path] = {"text": clip.text, "runs": align(corpus.samples(clip), clip.text)}
        cache.mkdir(parents=True, exist_ok=True)
        store.write_text(json.dumps(known))
    spoken = []
    for clip in clips:
        if runs := known[clip.path]["runs"]:
            samples = corpus.samples(clip)
            spoken.append(Spoken(clip.speaker, samples, token_labels(runs, len(samples) // TOKEN_SAMPLES)))
    return spoken


def aligner() -> Callable[[np.ndarray, str], list[tuple[str, int]] | None]:
    """A function from (samples float32 [T] at 16 kHz, lower-case text) to runs (phone, aligner frames), or None."""
    from pocketsphinx import Decoder

    # bestpath off: the lattice search loses a third of the alignments ("final state not reached")
    decoder = Decoder(lm=None, loglevel="FATAL", bestpath=False)

    def align(samples: np.ndarray, text: str) -> list[tuple[str, int]] | None:
        if any(decoder.lookup_word(word) is None for word in text.split()):
            return None
        raw = (np.clip(samples, -1, 1) * 32767).astype(np.int16).tobytes()
        try:
            decoder.set_align_text(text)
            for second_pass in (False, True):  # words first, then the phones within them
                if second_pass:
                    decoder.set_alignment()
                decoder.start_utt()
                decoder.process_raw(raw, full_utt=True)
                decoder.end_utt()
            return [(phone.name, phone.duration) for word in decoder.get_alignment() for phone in word]
        except RuntimeError:
            return None

    return align


def token_labels(runs: Iterable[tuple[str, int]], tokens: int) -> np.ndarray:
    """Runs of 10 ms frames -> `int64 [tokens]`: the phone of the frame whose window centre is nearest to each token.

    Noises count as silence, and so does anything after the last run.
    """
    index = {phone: i for i, phone in enumerate(PHONES)}
    frames = [index.get(phone, 0) for phone, duration in runs for _ in range(duration)]
    per_token = TOKEN_SAMPLES // ALIGNER_FRAME
    frames += [0] * (tokens * per_token - len(frames))
    return np.array(frames[1 : tokens * per_token : per_token], np.int64)


def normalised_information(counts: np.ndarray, corrected: bool = False) -> float:
    """I(phone; token) / H(phone) from joint counts [phones, tokens].

    `corrected` subtracts the upward bias of few observations (Miller and Madow: each entropy is about
    (used cells - 1) / 2N nats too low), which with 512 codes and half an hour of speech is about 0.05.
    """
    total = counts.sum()

    def entropy(cells: np.ndarray) -> float:
        p = cells[cells > 0] / total
        return float(-(p * np.log(p)).sum()) + (len(p) - 1) / (2 * total) * corrected

    phone = entropy(counts.sum(1))
    return float((phone + entropy(counts.sum(0)) - entropy(counts.ravel())) / max(phone, 1e-12))


def phone_information(tokens_of: Tokenize, clips: list[Spoken]) -> dict[str, float]:
    """Phone-normalised mutual information of any tokenizer on aligned clips.

    Returns `information` with its 95 % interval `low`, `high` (bootstrap over speakers), `corrected` for few data,
    `codes` in use, `bits_per_second` (entropy of the tokens as if independent) and `seconds` of speech measured.
    """
    pairs: dict[str, list[np.ndarray]] = {}
    for clip in clips:
        tokens = np.asarray(tokens_of(clip.samples))
        length = min(len(tokens), len(clip.phones))
        pairs.setdefault(clip.speaker, []).append(np.stack([clip.phones[:length], tokens[:length]]))
    size = 1 + max(int(part[1].max()) for parts in pairs.values() for part in parts if part.size)
    speakers = [_joint(np.concatenate(parts, 1), size) for parts in pairs.values()]
    counts = np.sum(speakers, 0)
    # speakers drawn twice repeat themselves, which raises the estimate: use the draws' width, not their location
    low, high = bootstrap(speakers, lambda chosen: normalised_information(np.sum(chosen, 0)), resamples=200)
    information, half = normalised_information(counts), (high - low) / 2
    p = counts.sum(0) / counts.sum()
    entropy = float(-(p[p > 0] * np.log2(p[p > 0])).sum())
    return {
        "information": information,
        "low": information - half,
        "high": information + half,
        "corrected": normalised_information(counts, corrected=True),
        "codes": int((p > 0).sum()),
        "bits_per_second": entropy * RATE / TOKEN_SAMPLES,
        "seconds": float(counts.sum() * TOKEN_SAMPLES / RATE),
    }


def _joint(pair: np.ndarray, size: int) -> np.ndarray:
    """Pairs int [2, N] of phone and token -> counts int32 [phones, size]."""
    flat = np.bincount(pair[0] * size + pair[1], minlength=len(PHONES) * size)
    return flat.reshape(len(PHONES), size).astype(np.int32)


def mfcc(samples: np.ndarray) -> np.ndarray:
    """`float32 [T]` at 16 kHz -> `float32 [T // 640, 39]`: 13 MFCC with two deltas, four 10 ms frames averaged.

    25 ms windows, as in HuBERT's first iteration (there at 100/s).
    """
    import librosa

    tokens = len(samples) // TOKEN_SAMPLES
    padded = np.pad(samples, (0, max(0, 9 * ALIGNER_FRAME - len(samples))))  # a delta needs nine frames
    static = librosa.feature.mfcc(y=padded, sr=RATE, n_mfcc=13, n_fft=512, win_length=400, hop_length=160, n_mels=40)
    stacked = np.concatenate([static, librosa.feature.delta(static), librosa.feature.delta(static, order=2)])
    stacked = stacked[:, : tokens * 4].reshape(39, tokens, 4)
    return stacked.mean(2).T.astype(np.float32)


def mfcc_tokenizer(corpus: Corpus, codes: int, seconds: float = 4000, seed: int = 0) -> Tokenize:
    """The baseline: k-means with `codes` centroids on the MFCC of about `seconds` of random clips.

    Features are scaled to unit variance per dimension.
    """
    features, have = [], 0.0
    for i in np.random.default_rng(seed).permutation(len(corpus.clips)):
        if have >= seconds:
            break
        features.append(mfcc(corpus.samples(corpus.clips[i])))
        have += corpus.clips[i].samples / RATE
    fitted = np.concatenate(features)
    mean, deviation = fitted.mean(0), fitted.std(0)
    centroids = kmeans(torch.from_numpy((fitted - mean) / deviation), codes, seed=seed)
    return lambda samples: nearest(torch.from_numpy((mfcc(samples) - mean) / deviation), centroids).numpy()


def as_function(tokenizer: SemanticTokenizer) -> Tokenize:
    """A tokenizer module as a plain function."""
    device = next(tokenizer.parameters()).device
    return lambda samples: tokenizer.tokenize(torch.from_numpy(samples).to(device)[None])[0].cpu().numpy()
