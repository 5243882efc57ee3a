"""Tokens, audio and logits of fixed models for a fixed signal, as they were.

`python -m tests.program.test_golden` rewrites them.

Models and signal come from numpy's RandomState, whose numbers never change, so only the program can change the results.
Where they change, bundles in use would sound different: a commit that rewrites them says why.
"""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from audiolm_cli.codec.soundstream import SoundStream
from audiolm_cli.config import WaveformConfig, preset
from audiolm_cli.language_models.sampling import Noise, StageSampling
from audiolm_cli.language_models.stages import StageContext, complete, continue_coarse, continue_semantic
from audiolm_cli.language_models.tokens import TokenSequence
from audiolm_cli.language_models.transformer import Transformer
from tests.helpers import ROOT
from tests.helpers.bundles import in_memory, modules

Module = TypeVar("Module", bound=nn.Module)

GOLDEN = ROOT / "tests" / "golden" / "tiny.safetensors"
CONFIG = preset("tiny")
PLAIN = dataclasses.replace(
    CONFIG,
    semantic=dataclasses.replace(CONFIG.semantic, layout="plain"),
    coarse=dataclasses.replace(CONFIG.coarse, layout="plain"),
    fine=dataclasses.replace(CONFIG.semantic, layout="plain"),
)
SEEDS = {"codec": 0, "tokenizer": 1, "semantic": 2, "fine": 11, "coarse": 12, "detector": 5}
PLAIN_SEEDS = {"semantic": 2, "coarse": 3, "fine": 4}
PROMPT, NEW = 10, 4  # semantic tokens
CODES = (  # new coarse codes that stage 3 is given
    (1, 15, 27, 31, 12, 31, 18, 28),
    (31, 31, 31, 28, 21, 24, 26, 21),
    (16, 31, 16, 28, 28, 12, 10, 28),
    (24, 21, 16, 10, 16, 29, 24, 19),
)
SAMPLING = StageSampling(temperature=1.0, top_k=0, top_p=0.95)


def settled(module: Module, seed: int) -> Module:
    """The module with weights that depend on nothing but the seed, of a size that keeps signals alive."""
    random = np.random.RandomState(seed)
    for name, tensor in sorted(module.state_dict().items()):
        values = torch.from_numpy(random.standard_normal(tuple(tensor.shape)))
        if tensor.ndim > 1:
            fan_in = tensor.shape[-1] if name.endswith("codebooks") else tensor[0].numel()
            tensor.copy_(values / fan_in**0.5)
        elif tensor.is_floating_point():
            tensor.copy_(0.1 * values + (0 if name.endswith("bias") else 1))
    return module.eval().requires_grad_(False)


def signal(tokens: int) -> Tensor:
    """`float32 [1, T]`: a rising tone with a little noise."""
    time = np.arange(640 * tokens) / 16000
    noise = 0.05 * np.random.RandomState(9).standard_normal(len(time))
    return torch.from_numpy(0.3 * np.sin(2 * np.pi * (200 + 400 * time) * time) + noise).float()[None]


@torch.inference_mode()
def results(disturbed: float = 0.0) -> dict[str, Tensor]:
    """All that is compared. `disturbed`: by how much the signal and the models' weights are off."""

    def off(tensor: Tensor, seed: int) -> Tensor:
        return tensor + disturbed * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed))

    parts = {name: settled(module, SEEDS[name]) for name, module in modules(CONFIG).items()}
    bundle, spec, audio = in_memory(CONFIG, parts), CONFIG.tokens, off(signal(PROMPT), 3)
    plain = in_memory(PLAIN, {name: settled(modules(PLAIN)[name], seed) for name, seed in PLAIN_SEEDS.items()})
    weights = [w for models in (bundle, plain) for model in models.stages.values() for w in model.parameters()]
    for seed, weight in enumerate(weights):
        weight.copy_(off(weight, seed))
    hidden = bundle.tokenizer.represent(audio)[0]  # normalised as training does it, else all tokens are the same
    bundle.tokenizer.mean.copy_(hidden.mean(0))
    bundle.tokenizer.scale.copy_(1 / hidden.std(0))
    found = {"semantic": bundle.tokenizer.tokenize(audio)[0]}
    waveform = SoundStream(WaveformConfig(encoder_channels=3, decoder_channels=3, latent=8), spec)
    for kind, codec in (("spectral", bundle.codec), ("waveform", settled(waveform, 7))):
        found[f"{kind}.codes"] = codec.encode(audio)[0]
        found[f"{kind}.decoded"] = codec.decode(found[f"{kind}.codes"][None])[0, ::8].contiguous()
    semantic, codes = found["semantic"], found["spectral.codes"]
    found["semantic.logits"] = last_logits(bundle.semantic, bundle.semantic.sequence(semantic))
    noise, total, coarse = [Noise(1, 0, 0)], PROMPT + NEW, codes[: spec.coarse]
    for models, name in ((bundle, "continued"), (plain, "plain")):
        (continued,) = continue_semantic(models.semantic, [semantic], [total], StageContext(noise, SAMPLING, 1))
        found[f"{name}.semantic"] = continued[PROMPT:]
        (made,) = continue_coarse(models.coarse, [continued], [coarse], StageContext(noise, SAMPLING, 1))
        found[f"{name}.coarse"] = made
        assert models.fine is not None
        given = made if models is plain else torch.cat([coarse, torch.tensor(CODES)], 1)
        (found[f"{name}.codes"],) = complete(models.fine, [given], [codes], StageContext(noise, SAMPLING, 1))
    found["frames.codes"], found["parallel.codes"] = found.pop("continued.coarse"), found.pop("continued.codes")
    return {name: tensor if tensor.is_floating_point() else tensor.short() for name, tensor in found.items()}


def last_logits(model: Transformer, sequence: TokenSequence) -> Tensor:
    """Logits of all ids at the last two positions."""
    hidden = model(sequence.ids[None], sequence.fields[None])[0, -2:]
    return model.logits(hidden, 0, model.vocabulary.size)


def test_results_are_what_they_were() -> None:
    golden, now = load_file(GOLDEN), results()
    assert golden.keys() == now.keys()
    for name, tensor in golden.items():
        same = torch.allclose(now[name], tensor, atol=1e-4) if tensor.is_floating_point() else now[name].equal(tensor)
        assert same, name


def test_no_golden_token_is_near_a_tie() -> None:
    """Else another processor or version of torch could change one."""
    exact, disturbed = results(), results(disturbed=1e-5)
    for name, tensor in exact.items():
        if not tensor.is_floating_point():
            assert torch.equal(disturbed[name], tensor), name
            assert len(tensor.unique()) > 2, name


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    save_file(results(), GOLDEN)
