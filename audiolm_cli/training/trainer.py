"""What all training scripts share: arguments, learning rate schedule, log and checkpoints.

Each run has a folder with checkpoint.pt (modules, optimizer, step, seconds trained) and log.jsonl (an object a line:
step, seconds, steps_per_second, then the script's figures; lines with validation figures have `"valid": true`). The
learning rate decays with the share of the minutes used, so that a run ends with a small one on any machine.

torchrun trains with several processes: GPUs, or CPU cores (one thread each is faster than two threads in one process).
Each process draws its own crops, gradients are averaged, and only the first process writes files.

    torchrun --nproc-per-node 2 -m audiolm_cli.training.parts.lm --stage coarse --data DATA
"""

from __future__ import annotations

import argparse
import atexit
import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads on a busy machine cost 10-30x

import torch
from safetensors.torch import load_file
from torch import Tensor, distributed, nn

from audiolm_cli.bundles import int8
from audiolm_cli.bundles.bundle import read_about, whole
from audiolm_cli.checks import threads
from audiolm_cli.processor import Processor, processor

SAVE_SECONDS, LOG_SECONDS = 120, 20
VALIDATIONS = 8  # in a training with a fixed number of steps

Best = tuple[float, dict[str, Tensor]]  # the lowest validation figure so far, and the module's state with it


def arguments(description: str, minutes: float) -> argparse.ArgumentParser:
    """The options of every training script."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.tsv")
    parser.add_argument("--runs", type=Path, default=Path("runs/speech"), help="folder for caches and checkpoints")
    parser.add_argument("--minutes", type=float, default=minutes, help="training time in total, over all resumed runs")
    parser.add_argument("--resume", action="store_true", help="resume from the checkpoint, if there is one")
    parser.add_argument("--warm-start", action="store_true", help="initialise from the part in RUNS/parts/")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=threads(0), default=0, help="CPU threads; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def add_matrices(parser: argparse.ArgumentParser) -> None:
    """Adds the option of trainings whose part can store matrices in int8."""
    parser.add_argument("--matrices", choices=("int8", "bfloat16"), default="int8", help="matrices on disk")


def matrices(args: argparse.Namespace, part: str) -> tuple[str, ...]:
    """The name prefixes of the matrices that a part stores in int8."""
    return int8.MATRICES[part] if args.matrices == "int8" else ()


def warm_start(args: argparse.Namespace, part: str, module: nn.Module) -> dict[str, Any]:
    """With --warm-start, loads the weights of an earlier part into a module, and returns that part's training metadata
    as `before`. Raises ModelError.

    The part may come from other tokens, even another domain: tensors without a counterpart of the same name and shape,
    such as embeddings of another vocabulary, stay at their random initialisation and are listed in `anew`.
    """
    if not args.warm_start:
        return {}
    file = args.runs / "parts" / f"{part}.safetensors"
    before, wanted = read_about(file)["trained"], module.state_dict()
    found = int8.restored(load_file(file))
    fit = {name: found[name].float() for name in wanted if name in found and found[name].shape == wanted[name].shape}
    module.load_state_dict(fit, strict=False)
    return {"before": before, **({"anew": sorted(wanted.keys() - fit.keys())} if len(fit) < len(wanted) else {})}


class Trainer:
    """Yields steps until the time is over: `for step in trainer: ...; trainer.update(loss, figures)`."""

    def __init__(
        self,
        name: str,
        args: argparse.Namespace,
        module: nn.Module,
        *,
        rate: float,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        warmup: int = 200,
        validate_seconds: float = 300,
        save_seconds: float = SAVE_SECONDS,
        steps: int = 0,
        muon: bool = True,
        tell: Callable[[dict[str, object]], object] | None = None,
    ):
        """`args` has minutes, threads, device, seed, runs, resume. `steps` replaces the minutes by a number of steps,
        with VALIDATIONS validations. Without `muon`, AdamW trains all. `tell` gets every log line; by default it is
        printed."""
        if args.threads:
            torch.set_num_threads(args.threads)
        self.rank, self.device = 0, torch.device(args.device)
        if "WORLD_SIZE" in os.environ:  # started by torchrun
            distributed.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
            atexit.register(distributed.destroy_process_group)  # threads that still run at the exit would abort it
            self.rank = distributed.get_rank()
            if args.device == "cuda":
                self.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.manual_seed(args.seed + self.rank)
        self.folder: Path = args.runs / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.minutes, self.module = args.minutes, module.to(self.device)
        self.rate, self.warmup, self.validate_seconds = rate, warmup, validate_seconds
        self.save_seconds, self.steps, self.tell = save_seconds, steps, tell or _print
        self.optimizers = optimizers(module, rate, betas, weight_decay, muon)
        self.step, self.seconds = 0, 0.0
        self.extra: dict[str, Any] = {}  # what a script keeps in its checkpoint
        self._sums: dict[str, float] = {}
        self._logged = self._saved = self._validated = 0.0
        self._logged_step, self._summed = 0, 0
        if args.resume and (self.folder / "checkpoint.pt").is_file():
            self._load()
        self.broadcast()

    @property
    def progress(self) -> float:
        """Share of the training that is done, 0 to 1."""
        if self.extra.get("stopped"):
            return 1.0
        return min(1.0, self.step / self.steps if self.steps else self.seconds / (60 * self.minutes))

    def stop(self) -> None:
        """Ends the training after this step; a resumed run does not continue it."""
        self.extra["stopped"] = True

    def autocast(self, enabled: bool = True) -> torch.autocast:
        return autocast(self.device, enabled)

    def __iter__(self) -> Iterator[int]:
        while self.progress < 1:
            start = time.monotonic()
            rate = (
                self.rate
                * min(1, (self.step + 1) / self.warmup)
                * (0.02 + 0.49 * (1 + math.cos(math.pi * self.progress)))
            )
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate
            yield self.step
            self.step += 1
            self.seconds += self._same(time.monotonic() - start)
            if self.seconds - self._logged > LOG_SECONDS:
                self._log_means(rate)
            if self.seconds - self._saved > self.save_seconds:
                self.save()
        self.save()

    def update(self, loss: Tensor, figures: Mapping[str, float | Tensor]) -> None:
        """One optimizer step; `figures` are averaged into the next log line. A loss that is not finite is skipped."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        self._average_gradients()
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        if torch.isfinite(norm):
            for optimizer in self.optimizers:
                optimizer.step()
        self._summed += 1
        for key, value in {"loss": loss, **figures}.items():
            self._sums[key] = self._sums.get(key, 0.0) + float(torch.as_tensor(value).detach())

    def due(self) -> bool:
        """Whether to validate after this step, which is so at regular intervals."""
        if self.steps:
            return (self.step + 1) % max(1, self.steps // VALIDATIONS) == 0
        if self.seconds - self._validated < self.validate_seconds:
            return False
        self._validated = self.seconds
        return True

    def broadcast(self) -> None:
        """Copies the first process's module to all processes."""
        if distributed.is_initialized():
            for tensor in self.module.state_dict().values():
                distributed.broadcast(tensor, 0)

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """A block that the first process runs before the others, so that they find its files."""
        if self.rank:
            distributed.barrier()
        yield
        if distributed.is_initialized() and not self.rank:
            distributed.barrier()

    def log(self, **figures: object) -> None:
        if self.rank:
            return
        line = {"step": self.step, "seconds": round(self.seconds), **figures}
        self.tell(line)
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def keep_best(self, figures: Mapping[str, Any], key: str = "bits", finished: bool = False) -> Best:
        """Logs validation figures; returns the state with the lowest `key` so far, which the checkpoints hold."""
        self.log(valid=True, finished=finished, **figures)
        best: Best | None = self.extra.get("best")
        figure = float(figures[key])
        if best is None or figure < best[0]:
            best = self.extra["best"] = figure, copy.deepcopy(self.module.state_dict())
        return best

    def save(self) -> None:
        self._saved = self.seconds
        if self.rank:
            return
        state = {
            "module": self.module.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
            "extra": self.extra,
        }
        with whole(self.folder / "checkpoint.pt") as part:
            torch.save(state, part)

    def _load(self) -> None:
        state = load_checkpoint(self.folder, self.device)
        self.module.load_state_dict(state["module"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds, self.extra = state["step"], state["seconds"], state["extra"]
        self._logged = self._saved = self._validated = self.seconds
        self._logged_step = self.step

    def _same(self, seconds: float) -> float:
        """The first process's seconds, the same in all processes."""
        if not distributed.is_initialized():
            return seconds
        value = torch.tensor(seconds, dtype=torch.float64, device=self.device)
        distributed.broadcast(value, 0)
        return float(value)

    def _average_gradients(self) -> None:
        if not distributed.is_initialized():
            return
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        count = distributed.get_world_size()
        for gradient, mean in zip(gradients, summed([gradient / count for gradient in gradients]), strict=True):
            gradient.copy_(mean)

    def _log_means(self, rate: float) -> None:
        speed = (self.step - self._logged_step) / (self.seconds - self._logged)
        means = {key: round(value / max(1, self._summed), 4) for key, value in self._sums.items()}
        self.log(steps_per_second=round(speed, 2), rate=round(rate, 6), **means)
        self._logged, self._logged_step, self._sums, self._summed = self.seconds, self.step, {}, 0


def _print(line: dict[str, object]) -> None:
    print(json.dumps(line), flush=True)


def optimizers(
    module: nn.Module, rate: float, betas: tuple[float, float], weight_decay: float, muon: bool = True
) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al., 2024) for the matrices of repeated layers, AdamW for all else: embeddings, convolutions, the
    first and the last layer; without `muon`, AdamW for all. Muon's steps are scaled to the size of AdamW's."""
    matrices = {
        id(layer.weight)
        for name, layer in module.named_modules()
        if muon and isinstance(layer, nn.Linear) and any(part.isdigit() for part in name.split("."))
    }
    groups: dict[str, list[nn.Parameter]] = {"muon": [], "decayed": [], "others": []}
    for parameter in module.parameters():
        if parameter.requires_grad:
            kind = "muon" if id(parameter) in matrices else "decayed" if parameter.ndim > 1 else "others"
            groups[kind].append(parameter)
    adam = [
        {"params": groups["decayed"], "weight_decay": weight_decay},
        {"params": groups["others"], "weight_decay": 0.0},
    ]
    result: list[torch.optim.Optimizer] = [torch.optim.AdamW(adam, lr=rate, betas=betas, fused=True)]
    if groups["muon"]:
        muon_kind = torch.optim.Muon if fast_bfloat16(groups["muon"][0].device) else Float32Muon
        result.append(muon_kind(groups["muon"], lr=rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"))
    return result


class Float32Muon(torch.optim.Muon):
    """Muon with its iteration in float32, for processors that emulate bfloat16, where torch's takes four times as long.
    Its state is the same, so a run can resume with either. Processes divide the matrices among them."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            updates = []
            for parameter in parameters:
                assert parameter.grad is not None
                momentum = self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter.grad))
                momentum.lerp_(parameter.grad, 1 - group["momentum"])
                updates.append(parameter.grad.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum)
            updates = shared_out(updates, group["ns_coefficients"], group["ns_steps"])
            for parameter, update in zip(parameters, updates, strict=True):
                size = 0.2 * max(parameter.shape) ** 0.5  # as AdamW's steps: `match_rms_adamw`
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * size)


def shared_out(matrices: list[Tensor], coefficients: tuple[float, float, float], steps: int) -> list[Tensor]:
    """All matrices `orthogonalised`; under torchrun each process computes its share and receives the others'."""
    if not distributed.is_initialized():
        return [orthogonalised(x, coefficients, steps) for x in matrices]
    rank, count = distributed.get_rank(), distributed.get_world_size()
    return summed(
        [
            orthogonalised(x, coefficients, steps) if n % count == rank else torch.zeros_like(x)
            for n, x in enumerate(matrices)
        ]
    )


def summed(tensors: list[Tensor]) -> list[Tensor]:
    """Sums tensors over all processes, in one all-reduce."""
    together = torch.cat([x.flatten() for x in tensors])
    distributed.all_reduce(together)
    return [part.view_as(x) for part, x in zip(together.split([x.numel() for x in tensors]), tensors, strict=True)]


def orthogonalised(x: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """A matrix with its singular values brought near 1 by the Newton-Schulz iteration (Jordan et al., 2024)."""
    a, b, c = coefficients
    wide = x.T if x.shape[0] > x.shape[1] else x
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide.T if x.shape[0] > x.shape[1] else wide


def fast_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster than in float32."""
    return device.type != "cpu" or processor() >= Processor.AVX512_BF16


def autocast(device: torch.device, enabled: bool = True) -> torch.autocast:
    """Mixed precision, on devices where it is faster."""
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled and fast_bfloat16(device))


def load_checkpoint(folder: Path, device: torch.device | str = "cpu") -> dict:
    """A run's checkpoint as plain tensors and numbers."""
    return torch.load(folder / "checkpoint.pt", map_location=device, weights_only=True)
