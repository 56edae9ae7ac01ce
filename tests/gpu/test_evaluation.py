"""Clips that reach the GPU as uint8 are what the CPU would have made of them (a second)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from r21d.evaluation import evaluate
from r21d.video.transforms import InputSpec, Normalize

SPEC = InputSpec(clip_len=4, resize=(20, 28), crop=(16, 16))


class Clips(Dataset[tuple[Tensor, int, int]]):
    """Random uint8 clips, two a video."""

    classes = ("a", "b", "c")
    spec = SPEC
    clips = 2

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (9, self.clips, 3, SPEC.clip_len, *SPEC.crop)
        self.frames = torch.randint(256, shape, dtype=torch.uint8, generator=generator)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        if index >= len(self):
            raise IndexError(index)
        return self.frames[index], index % 3, index


class Brightness(nn.Module):
    """Logits by mean colour, far enough apart for rounding not to matter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((), 100.0))

    def forward(self, x: Tensor) -> Tensor:
        return x.double().mean((2, 3, 4)).float() * self.scale


def test_normalising_there_is_normalising_here() -> None:
    clips = Clips().frames.flatten(0, 1)
    here = Normalize(SPEC)(clips)
    there = Normalize(SPEC)(clips.cuda())
    assert there.is_cuda
    # A division and a subtraction: the GPU may round the reciprocal differently by one unit.
    ulp = torch.finfo(torch.float32).eps * here.abs().max()
    assert (there.cpu() - here).abs().max() <= 2 * ulp


def test_accuracy_there_is_accuracy_here() -> None:
    here = evaluate(Brightness(), Clips(), batch_size=4)
    there = evaluate(Brightness().cuda(), Clips(), batch_size=4)
    assert torch.equal(here.confusion, there.confusion)
    assert here.clip_top1 == there.clip_top1 and here.video_top1 == there.video_top1
