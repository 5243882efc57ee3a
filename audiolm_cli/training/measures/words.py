"""Does stage 1 know words? Spoken words against pseudo-words made of the same sounds; 50 % is chance.

In the manner of sWUGGY (Nguyen et al., 2020, The Zero Resource Speech Benchmark 2021). Words are frequent ones of the
training transcripts, which serve this test only. Two words that exchange what follows their first vowel make two
pseudo-words: cover and whether become "couther" and "whever". So within a pair, no sound, beginning or ending is on one
side only: only their combinations tell the sides apart. flite speaks all four from phones, in several voices. A word is
preferred if its semantic tokens get a higher probability than those of the pseudo-word with the same beginning: up to
the exchange the two are equal, and the difference after it is reversed for the other word.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from audiolm_cli.audio import files
from audiolm_cli.bundles.bundle import Bundle
from audiolm_cli.errors import InputError
from audiolm_cli.training import RATE
from audiolm_cli.training.corpora.data import Corpus
from audiolm_cli.training.measures.measures import figure

VOICES = ("slt", "awb", "rms")  # flite's statistical voices: a US woman, a Scottish and a US man
REFERENCE_VOICE = "kal16"  # for comparing pronunciations: the fastest, and as exact
CARRIER = "bana"  # a spelling that flite takes for a word; the given lexicon defines its pronunciation
LEAD, TAIL = 3 * RATE // 25, 2 * RATE // 25  # samples of silence around every word: 3 and 2 tokens
LEVEL, NOISE = 10 ** (-24 / 20), 10 ** (-64 / 20)  # RMS of a word and of the noise under it, as in training data
FREQUENT = 700  # words tried; flite's own lexicon has nine in ten of them with the same sounds
LETTERS, SOUNDS, SYLLABLES = 3, 4, 2  # minimum numbers in a word
CROSSINGS = 10  # words of the dictionary that must have the same vowel, consonants and vowel as at an exchange
BATCH = 32
_VOWELS = "aa ae ah ao aw ax ay eh er ey ih iy ow oy uh uw"
VOWELS = frozenset(_VOWELS.split())
ALIKE = {"ih": "ah", "ao": "aa"}  # vowels that many speakers or dictionaries do not distinguish

Phones = tuple[str, ...]  # flite's names: lower-case ARPAbet, vowels with stress 0 or 1, `ax0` for schwa
Speak = Callable[[str, Phones], np.ndarray]  # voice, phones -> float32 [T] at 16 kHz


class Pair(NamedTuple):
    """Two words, and their pseudo-words by exchange: `pseudo[i]` begins like `real[i]` and ends like the other."""

    spelling: tuple[str, str]
    real: tuple[Phones, Phones]
    pseudo: tuple[Phones, Phones]


def flite_missing() -> bool:
    """Whether flite is missing, which the word test needs."""
    return shutil.which("flite") is None


def word_table(
    bundle: Bundle, training: Corpus, cache: Path, count: int = 200, voices: Sequence[str] = VOICES
) -> dict[str, dict[str, Any]]:
    """The share of words preferred to their pseudo-words, by voice and over all of them; see `preferences`.

    flite's speech is cached in the folder `cache`/words. Raises InputError without flite or if the transcripts have no
    pairs, ImportError without pocketsphinx (extra `eval`).
    """
    if flite_missing():
        raise InputError("flite is not installed: no word test")
    known = pronunciations()
    frequent = frequent_words(training, known)[:FREQUENT]
    chosen = pairs(dict(spoken_words(frequent, known, cache / "words" / "phones.json")), known, count)
    if not chosen:
        raise InputError("the transcripts have too few words: no word test")
    return preferences(bundle, chosen, voices, kept(say_phones, cache / "words"))


def preferences(
    bundle: Bundle, chosen: Sequence[Pair], voices: Sequence[str], speak: Speak
) -> dict[str, dict[str, Any]]:
    """A row per voice, and `all voices`: the Figures `words preferred`, by bits of the whole word, and `by mean bits`.

    Also the number of `pairs`. The bits of the whole are the measure: a pseudo-word has as many sounds as its word and
    the exchange balances their durations, while a mean lets a long easy sound hide an unlikely one. Ties count half;
    intervals are 95 % by bootstrap over pairs.
    """
    scores: dict[str, list[tuple[str, float, float]]] = {}
    for voice in voices:
        spoken = [phones for pair in chosen for phones in (*pair.real, *pair.pseudo)]
        bits = token_bits(bundle, [bundle.tokenizer.tokenize(_batch(bundle, speak(voice, p)))[0] for p in spoken])
        for number, pair in enumerate(chosen):
            first = 4 * number
            for real, pseudo in ((bits[first], bits[first + 2]), (bits[first + 1], bits[first + 3])):
                total, mean = (_preferred(f(real), f(pseudo)) for f in (np.sum, np.mean))
                scores.setdefault(voice, []).append((" ".join(pair.spelling), total, mean))
    rows = {**scores, "all voices": list(itertools.chain.from_iterable(scores.values()))}
    return {
        name: {
            "words preferred": figure((pair, total) for pair, total, _ in row),
            "by mean bits": figure((pair, mean) for pair, _, mean in row),
            "pairs": len(chosen),
        }
        for name, row in rows.items()
    }


def _preferred(real: float, pseudo: float) -> float:
    """Whether the word has fewer bits; half for a tie."""
    return 0.5 if real == pseudo else float(real < pseudo)


def _batch(bundle: Bundle, samples: np.ndarray) -> Tensor:
    return torch.from_numpy(samples).to(bundle.device)[None]


@torch.inference_mode()
def token_bits(bundle: Bundle, tokens: Sequence[Tensor]) -> list[np.ndarray]:
    """Bits of every token in stage 1, given `<begin>` and those before it: `int64 [S]` -> `float32 [S]` for each."""
    bits: list[np.ndarray] = [np.empty(0)] * len(tokens)
    order = sorted(range(len(tokens)), key=lambda n: len(tokens[n]))  # a batch has one length
    for _, alike in itertools.groupby(order, key=lambda n: len(tokens[n])):
        while part := list(itertools.islice(alike, BATCH)):
            pieces = [(tokens[n].cpu(), tokens[n][:0]) for n in part]
            losses = bundle.semantic.token_losses(bundle.semantic.batch(pieces).to(bundle.device))[..., 0] / np.log(2)
            for n, row in zip(part, losses.float().cpu().numpy(), strict=True):
                bits[n] = row
    return bits


def pronunciations() -> dict[str, list[Phones]]:
    """pocketsphinx's dictionary: every word with its pronunciations, in lower case, without stress and schwa.

    Raises ImportError without pocketsphinx (extra `eval`).
    """
    from pocketsphinx import get_model_path

    known: dict[str, list[Phones]] = {}
    with open(get_model_path("en-us/cmudict-en-us.dict"), encoding="utf-8") as file:
        for line in file:
            word, *phones = line.lower().split()
            known.setdefault(re.sub(r"\(\d+\)$", "", word), []).append(tuple(phones))
    return known


def frequent_words(corpus: Corpus, known: Mapping[str, list[Phones]]) -> list[str]:
    """Words of the transcripts that are in the dictionary and long enough, the most frequent first."""
    counts = Counter(word for clip in corpus.clips for word in clip.text.split())
    return [
        word
        for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        if len(word) >= LETTERS and word.isalpha() and any(_long(phones) for phones in known.get(word, ()))
    ]


def _long(phones: Phones) -> bool:
    return len(phones) >= SOUNDS and len(_vowels(phones)) >= SYLLABLES


def _vowels(phones: Phones) -> list[int]:
    """The places of the vowels."""
    return [place for place, phone in enumerate(phones) if phone.rstrip("01") in VOWELS]


def plain(phones: Phones) -> Phones:
    """flite's phones in the dictionary's notation."""
    bare = (phone.rstrip("01") for phone in phones)
    return tuple("ah" if phone == "ax" else phone for phone in bare)


def pairs(words: Mapping[str, Phones], known: Mapping[str, list[Phones]], count: int, seed: int = 0) -> list[Pair]:
    """Up to `count` pairs of words whose exchange makes two pseudo-words; each word is used at most once.

    The two have the same stresses and as many sounds after the first vowel, so a pseudo-word is as long as its word. No
    word of the dictionary sounds like a pseudo-word, not even with vowels that are ALIKE; but the sounds around the
    exchange occur in CROSSINGS words: it could be a word.
    """
    taken = {phones for spoken in known.values() for phones in spoken}
    similar = {_similar(phones) for phones in taken}
    crossings = Counter(phones[a : b + 1] for phones in taken for a, b in itertools.pairwise(_vowels(phones)))
    random = np.random.default_rng(seed)
    free = {word: words[word] for word in random.permutation(sorted(words)).tolist()}
    found: list[Pair] = []
    while free and len(found) < count:
        spelling = next(iter(free))
        one = free.pop(spelling)
        for partner, other in free.items():
            pseudo = exchanged(one, other)
            if pseudo and all(_similar(p) not in similar and crossings[_crossing(p)] >= CROSSINGS for p in pseudo):
                found.append(Pair((spelling, partner), (one, other), pseudo))
                del free[partner]
                break
    return found


def exchanged(one: Phones, other: Phones) -> tuple[Phones, Phones] | None:
    """Both with the other's sounds after the first vowel; None unless all parts differ and the rhythm is the same."""
    a, b = _vowels(one)[0] + 1, _vowels(other)[0] + 1
    same_rhythm = [one[n][-1] for n in _vowels(one)] == [other[n][-1] for n in _vowels(other)]
    if not same_rhythm or len(one) - a != len(other) - b:
        return None
    if one[a - 1] == other[b - 1] or one[a:] == other[b:]:  # with the same vowel, only the onsets would be exchanged
        return None
    return one[:a] + other[b:], other[:b] + one[a:]


def _crossing(phones: Phones) -> Phones:
    """The sounds from the first vowel to the second, in the dictionary's notation."""
    first, second = _vowels(phones)[:2]
    return plain(phones)[first : second + 1]


def _similar(phones: Phones) -> Phones:
    return tuple(ALIKE.get(phone, phone) for phone in plain(phones))


def spoken_words(words: Iterable[str], known: Mapping[str, list[Phones]], store: Path) -> Iterator[tuple[str, Phones]]:
    """The words whose phones `flite_phones` finds, with these. Results are cached in the file `store`."""
    cached: dict[str, list[str] | None] = json.loads(store.read_text()) if store.is_file() else {}
    before = len(cached)
    for word in words:
        if word not in cached:
            found = flite_phones(word, known[word])
            cached[word] = None if found is None else list(found)
        phones = tuple(cached[word] or ())
        if _long(phones):
            yield word, phones
    if len(cached) > before:
        store.parent.mkdir(parents=True, exist_ok=True)
        store.write_text(json.dumps(cached))


def flite_phones(word: str, known: Sequence[Phones]) -> Phones | None:
    """flite's pronunciation of a word, with stress and schwa; None unless it is one of the `known` ones.

    flite tells its phones but not their stress, so every stress is tried: the right one gives exactly the same samples
    as the spelling. So the phones sound exactly like flite's word.
    """
    wanted, said = _flite(REFERENCE_VOICE, word)
    names = tuple(phone for phone, _ in said[1:-1])  # without the pauses
    if plain(names) not in known:
        return None
    full = [place for place in _vowels(names) if names[place] != "ax"]
    for stresses in sorted(itertools.product("10", repeat=len(full)), key=lambda s: abs(s.count("1") - 1)):
        stress = dict.fromkeys(_vowels(names), "0") | dict(zip(full, stresses, strict=True))
        phones = tuple(phone + stress.get(place, "") for place, phone in enumerate(names))
        if np.array_equal(_flite(REFERENCE_VOICE, CARRIER, phones)[0], wanted):
            return phones
    return None


def say_phones(voice: str, phones: Phones) -> np.ndarray:
    """Speaks with flite, `float32 [T]` at 16 kHz, with LEAD samples of its silence before the word and TAIL after it.

    At the level of a recording, over the same faint noise every time: flite's silence is deeper than any that the
    tokenizer was trained on, and its voices differ by 6 dB. Otherwise the same word has fewer tokens in common.
    """
    samples, ends = _flite(voice, CARRIER, phones)
    start, end = round(ends[0][1] * RATE), round(ends[-2][1] * RATE)  # end of the pause before, end of the last sound
    padded = np.pad(samples, (LEAD, TAIL))  # for pauses that are too short
    word = padded[start : end + LEAD + TAIL] / 32768
    loudness = max(np.sqrt(np.mean(np.square(word))), 1e-9)
    noise = np.random.default_rng(0).standard_normal(len(word))
    return (word * LEVEL / loudness + noise * NOISE).astype(np.float32)


def _flite(voice: str, word: str, phones: Phones = ()) -> tuple[np.ndarray, list[tuple[str, float]]]:
    """A word by flite, pronounced as given by `phones` if any: int16 [T], and its sounds with their ends in seconds.

    Raises InputError if flite fails or does not know a phone, which it would omit.
    """
    import soundfile

    with tempfile.TemporaryDirectory() as folder:
        sound, lexicon = Path(folder, "out.wav"), Path(folder, "lexicon")
        command = ["flite", "-voice", voice, "-psdur", "-t", word, "-o", str(sound)]
        if phones:  # option -p takes phones as well, but speaks them as one syllable
            lexicon.write_text(f"{word} : {' '.join(phones)}\n")
            command[1:1] = ["-add_lex", str(lexicon)]
        done = subprocess.run(command, capture_output=True, text=True)
        complaint = done.stderr.strip()
        if done.returncode or "not in lexicon" in done.stdout + complaint or not sound.is_file():
            raise InputError(f"flite cannot say {' '.join(phones) or word!r} with voice {voice}: {complaint}")
        samples, _ = soundfile.read(sound, dtype="int16")
    ends = [entry.rpartition(":") for entry in done.stdout.split()]
    return samples, [(phone, float(end)) for phone, _, end in ends]


def kept(speak: Speak, folder: Path) -> Speak:
    """`speak`, with WAV files in `folder` as a cache."""

    def recall(voice: str, phones: Phones) -> np.ndarray:
        file = folder / voice / f"{'-'.join(phones)}.wav"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            files.write(file, speak(voice, phones), RATE, {})
        return files.read(file, RATE).samples

    return recall
