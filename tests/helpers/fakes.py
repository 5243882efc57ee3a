"""A stand-in for the models, with which a command line takes no time: in a test's process or, without torch, its own.

In a test's process (the fixture `fake`) outputs and prompts are the pipeline's own dataclasses; elsewhere, where torch
would take seconds to import, plain namespaces with the same fields.
"""

from __future__ import annotations

import base64
import dataclasses
import importlib
import operator
import sys
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from audiolm_cli.config import Sampling, TokenSpec, preset

CONFIG = dataclasses.replace(
    preset("tiny"),
    tokens=TokenSpec(),
    sampling=Sampling(guidance=2.0),
    prompt_seconds=3.0,
    familiar_bits=8.0,
    depends={"codec": {"self": "c0dec"}, "tokenizer": {"self": "70ken5"}},
)


def plain_prompt(waveform: np.ndarray, position: int, sample: int, seed: int) -> types.SimpleNamespace:
    return types.SimpleNamespace(waveform=waveform, position=position, sample=sample, seed=seed)


@dataclass
class FakeStream:
    """As `pipeline.Stream`."""

    chunks: Iterator[Any]
    made: Any

    def __iter__(self) -> Iterator[Any]:
        return self.chunks

    def output(self, chunks: Any) -> Any:
        return self.made


@dataclass
class FakePipeline:
    """Stands in for bundle.py and pipeline.py: the new audio is a constant that says how it was asked for."""

    level: float = 0.25
    seconds: float | None = None  # of new audio; else as many as are asked for
    pause: float = 0.0  # seconds before each call of continue_ but the first
    surprise: float | None = None
    unfamiliar: str = ""
    loads: list[tuple[str, str, str]] = field(default_factory=list)
    calls: list[dict] = field(default_factory=list)
    fail_at: int | None = None  # the call of continue_ that raises, counted from 0
    error: BaseException = field(default_factory=KeyboardInterrupt)
    output: Callable[..., Any] = types.SimpleNamespace
    prompt: Callable[..., Any] = plain_prompt

    def load(self, name: str, *, device: str, dtype: str, offline: bool = False) -> types.SimpleNamespace:
        self.loads.append((name, device, dtype))
        config = dataclasses.replace(CONFIG, name=name)
        return types.SimpleNamespace(config=config, identity="0123456789abcdef", kernel="native", revision="")

    def continue_(self, bundle, request, prompts, *, progress, **options) -> Iterator[Any]:
        time.sleep(self.pause if self.calls else 0)
        self.calls.append({"request": request, "prompts": prompts, **options})
        if self.fail_at == len(self.calls) - 1:
            raise self.error
        seconds: Any = self.seconds or getattr(request, "duration", 1.0)
        best_of = getattr(request, "best_of", 1)
        for prompt in prompts:
            for stage in ("tokenize", "semantic", "coarse", "fine", "decode"):
                if progress is not None:
                    progress(stage, 1, 2)
            empty = np.zeros((12, 0), np.int64)
            new = np.full(round(seconds * 16000), self.level + prompt.sample / 100, np.float32)
            yield self.output(
                waveform=np.concatenate([prompt.waveform, new]),
                prompt_samples=len(prompt.waveform),
                tokens_start=0,
                semantic=empty[0],
                codes=empty,
                stage_seconds={"semantic": 0.5, "decode": 0.1},
                stage_tokens={"semantic": 25, "decode": 50},
                surprise=self.surprise,
                unfamiliar=self.unfamiliar,
                candidates=tuple(-n / 4 for n in range(best_of)) if best_of > 1 else (),
            )

    def stream(self, bundle, request, prompt, **options) -> FakeStream:
        """The output in three chunks."""
        (made,) = self.continue_(bundle, request, [prompt], progress=None, **options)

        def chunks() -> Iterator[Any]:
            for n, part in enumerate(np.array_split(made.waveform, 3)):
                tokens = (made.semantic, made.codes) if n == 0 else (made.semantic[:0], made.codes[:, :0])
                yield types.SimpleNamespace(waveform=part, semantic=tokens[0], codes=tokens[1])

        return FakeStream(chunks(), made)

    def encode(self, bundle, waveform: np.ndarray, progress) -> Any:
        """Tokens that are all zeros, with the waveform itself among what is said of them."""
        import torch

        from audiolm_cli.token_file import Tokens

        length, spec = -(-len(waveform) // 640), bundle.config.tokens
        about = {"codec": bundle.config.depends["codec"]["self"], "samples": str(len(waveform))}
        about["waveform"] = base64.b64encode(waveform.tobytes()).decode()
        semantic, codes = (torch.zeros(size, dtype=torch.int64) for size in (length, (spec.quantizers, 2 * length)))
        return Tokens(semantic, codes, about)

    def decode(self, bundle, tokens, quantizers: int | None, progress) -> np.ndarray:
        """The waveform that was encoded, the softer the more quantizers are asked for."""
        return np.frombuffer(base64.b64decode(tokens.metadata["waveform"]), np.float32) / (quantizers or 1)


def install_without_torch(fake: FakePipeline) -> None:
    """As `install`, in a process of its own, and with a stand-in for torch, which takes seconds to import."""
    torch = types.ModuleType("torch")
    torch.set_num_threads = lambda count: None  # type: ignore[attr-defined]
    sys.modules["torch"] = torch
    install(fake)


def install(fake: FakePipeline, setitem: Callable = operator.setitem, setattr: Callable = setattr) -> None:
    """Puts it where the program imports the models from."""
    made = fake.continue_
    functions: dict[str, dict[str, Any]] = {
        "audiolm_cli.bundles.bundle": {"load": fake.load},
        "audiolm_cli.pipeline": {"continue_": made, "generate": made, "resynth": made, "Prompt": fake.prompt}
        | {"encode": fake.encode, "decode": fake.decode, "stream": fake.stream},
    }
    for name, members in functions.items():
        module, (package, _, leaf) = types.ModuleType(name), name.rpartition(".")
        vars(module).update(members)
        setitem(sys.modules, name, module)
        setattr(importlib.import_module(package), leaf, module)
