"""What trainings have in common: processes that train together stay alike."""

from __future__ import annotations

import argparse
import itertools
import os
import socket
from pathlib import Path

import pytest
import torch
from torch import nn

from audiolm_cli.training import trainer

pytestmark = pytest.mark.slow


def train_together(rank: int, folder: Path, port: int) -> None:
    """One of two processes, each with data of its own."""
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    trainer.time.monotonic = itertools.count(0, 0.2).__next__  # in this process
    torch.manual_seed(rank)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    arguments = argparse.Namespace(threads=1, device="cpu", seed=0, runs=folder, minutes=0.02, resume=False)
    shared = trainer.Trainer("shared", arguments, model, rate=1e-2, warmup=1)
    with shared.first_alone():
        (folder / "first").touch(exist_ok=rank > 0)
    for _ in shared:
        wanted = torch.randn(8, 4) + 10 * rank
        shared.update(model(wanted).square().mean(), {})
    shared.log(finished=True)
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(size, generator=generator) for size in ((4, 8), (4, 4), (6, 3))]
    for x, update in zip(matrices, trainer.shared_out(matrices, (3.4445, -4.775, 2.0315), 5), strict=True):
        assert torch.equal(update, trainer.orthogonalised(x, (3.4445, -4.775, 2.0315), 5))
    torch.save({"step": shared.step, **model.state_dict()}, folder / f"{rank}.pt")


def test_processes_that_train_together_stay_alike(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(train_together, (tmp_path, port), nprocs=2)
    states = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert states[0].pop("step") == states[1].pop("step") > 1
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
    assert trainer.load_checkpoint(tmp_path / "shared")["step"] > 1
    assert len((tmp_path / "shared" / "log.jsonl").read_text().splitlines()) == 1  # the first process alone writes
