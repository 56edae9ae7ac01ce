"""`train` on a GPU, in one process (seconds, most of them torch.compile's).

What the GPU does is compared with the CPU, or with itself, over so few steps that training has not
let rounding grow: a loss may be off by one rounding in each of about thirty layers.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

from r21d.evaluation.distributed import Ranks
from r21d.models import VideoResNet, create_model
from r21d.training import StopRequest, TrainConfig, TrainingStopped, train
from r21d.training.parallel import agree, no_sync, same_buffers, wrap
from r21d.training.recalibrate import recalibrate
from r21d.training.sync_bn import restore_batch_norm
from r21d.video import InputSpec
from r21d_ops import Conv2Plus1D

SPEC = InputSpec(clip_len=4, resize=(16, 16), crop=(16, 16))
BATCH = 8
CONFIG = TrainConfig(
    epochs=2, epoch_clips=3 * BATCH, batch_size=BATCH, lr=0.005, lr_step=9, device="cuda"
)
ONE_STEP = replace(CONFIG, epochs=1, epoch_clips=BATCH)
_LAYERS = 30


class Clips(Dataset[tuple[Tensor, int, int]]):
    """Uint8 clips of three brightnesses, one a video, which are normalised on the GPU."""

    classes = ("dark", "medium", "bright")
    spec = SPEC
    clips = 1

    def __init__(self, stop: StopRequest | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (24, 1, 3, SPEC.clip_len, *SPEC.crop)
        noise = torch.randint(120, shape, generator=generator)
        brightness = 60 * (torch.arange(len(noise)) % 3)
        self.frames = (noise + brightness.view(-1, 1, 1, 1, 1, 1)).to(torch.uint8)
        self.stop = stop
        self.reads = 0

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        if index >= len(self):
            raise IndexError(index)
        self.reads += 1
        if self.stop is not None and self.reads == 2 * BATCH:
            self.stop.requested = signal.SIGTERM
        return self.frames[index], index % 3, index


def network(dropout: float = 0.0) -> VideoResNet:
    torch.manual_seed(0)
    small: dict[str, Any] = {"blocks": (1, 1, 1, 1), "widths": (8, 8, 16, 16), "stem_channels": 8}
    return create_model("r2plus1d_18", num_classes=3, dropout=dropout, **small)


def close(loss: float, dtype: torch.dtype = torch.float32) -> Any:
    return pytest.approx(loss, rel=_LAYERS * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_step_is_the_cpus(dtype: str) -> None:
    (exact,) = train(network(), Clips(), None, replace(ONE_STEP, device="cpu"))
    model = network()
    (row,) = train(model, Clips(), Clips(), replace(ONE_STEP, dtype=dtype, eval_batch_size=5))
    assert row["train_loss"] == close(exact["train_loss"], getattr(torch, dtype))
    assert all(p.is_cuda and p.dtype == torch.float32 for p in model.parameters())
    assert math.isfinite(row["val_loss"])
    assert any(
        not torch.equal(p.cpu(), q)
        for p, q in zip(model.parameters(), network().parameters(), strict=True)
    )


def test_gradients_that_overflow_float16_are_skipped() -> None:
    model = network()
    # The scaler begins at 65536, and float16 ends there.
    nn.init.normal_(model.fc.weight, std=100.0)
    before = model.stem[0].weight.detach().clone()
    config = replace(ONE_STEP, dtype="float16", clip_gradients=1.0)
    (row,) = train(model, Clips(), None, config)
    assert row["skipped_steps"] == 1
    assert torch.equal(model.stem[0].weight.detach().cpu(), before)
    assert math.isfinite(row["train_loss"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_resumes_amid_an_epoch(tmp_path: Path, dtype: str) -> None:
    config = replace(CONFIG, dtype=dtype)
    whole = train(network(0.2), Clips(), Clips(), config)
    stop = StopRequest()
    with pytest.raises(TrainingStopped) as stopped:
        train(network(0.2), Clips(stop), Clips(), config, out=tmp_path, stop=stop)
    assert stopped.value.step == 2
    resumed = train(network(0.2), Clips(), Clips(), config, out=tmp_path, resume=True)
    assert [row["step"] for row in resumed] == [row["step"] for row in whole] == [3, 6]
    # Sums of a GPU may come out differently each time; other clips or dropout would show.
    assert resumed[0]["train_loss"] == close(whole[0]["train_loss"], getattr(torch, dtype))
    again = train(network(0.2), Clips(), Clips(), config, out=tmp_path, resume=True)
    assert again == resumed


def test_compiled_it_is_the_same_step_with_the_same_names() -> None:
    def small() -> nn.Module:
        torch.manual_seed(0)
        head = (nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 3))
        return nn.Sequential(Conv2Plus1D(3, 8), nn.BatchNorm3d(8), nn.ReLU(), *head)

    (expected,) = train(small(), Clips(), None, ONE_STEP)
    model = small()
    (row,) = train(model, Clips(), None, replace(ONE_STEP, compile=True))
    assert row["train_loss"] == close(expected["train_loss"])
    assert model.state_dict().keys() == small().state_dict().keys()


def test_recalibration_is_the_cpus() -> None:
    batches = [torch.randn(size, 3, 4, 16, 16) for size in (4, 3)]
    here, there = network(), network().cuda()
    recalibrate(here, batches, Ranks())
    recalibrate(there, [batch.cuda() for batch in batches], Ranks())
    eps = _LAYERS * torch.finfo(torch.float32).eps
    for name, buffer in here.named_buffers():
        scale = buffer.abs().max().item()
        torch.testing.assert_close(
            there.get_buffer(name).cpu(), buffer, rtol=0, atol=eps * scale, msg=name
        )


@pytest.fixture
def nccl() -> Iterator[Ranks]:
    """A group of this process alone, called one of two so that nothing is left out."""
    store = dist.HashStore()
    dist.init_process_group("cpu:gloo,cuda:nccl", store=store, rank=0, world_size=1)
    yield Ranks(0, 2, dist.group.WORLD)
    dist.destroy_process_group()


def test_nccl(nccl: Ranks) -> None:
    x, labels = torch.randn(6, 3, 4, 16, 16).cuda(), torch.arange(6).cuda() % 3
    grads = []
    for sync_bn in (None, False, True):
        model = network().cuda().train()
        called: nn.Module = model
        if sync_bn is not None:
            called = wrap(model, replace(CONFIG, sync_bn=sync_bn), nccl)
            assert isinstance(called, DistributedDataParallel)
            assert (type(model.stem[4]) is nn.SyncBatchNorm) == sync_bn
        for part in (slice(0, 3), slice(3, 6)):
            loss = nn.functional.cross_entropy(called(x[part]), labels[part])
            if part.start == 0:
                with no_sync(called):
                    loss.backward()
            else:
                loss.backward()
        same_buffers(model, nccl)
        restore_batch_norm(model)
        grads.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        )
    eps = _LAYERS * torch.finfo(torch.float32).eps
    for other in grads[1:]:
        assert (other - grads[0]).norm() <= eps * grads[0].norm()
    flags = agree(torch.tensor([0, 3, 1]), nccl, "cuda")
    assert flags.is_cuda and flags.tolist() == [0, 3, 1]
