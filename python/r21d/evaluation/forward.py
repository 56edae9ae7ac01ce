"""Running a network over clips, without gradients and without a trace on it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from r21d.video import InputSpec


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; each module's own mode is put back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes:
            module.training = training


def clip_logits(
    model: nn.Module, parts: Iterable[Tensor], batch_size: int, spec: InputSpec | None = None
) -> Tensor:
    """Float32 logits (K, classes) on the CPU of the clips (k, 3, T, h, w) of several ``parts``.

    ``batch_size`` clips at a time, wherever a part ends; no more parts are held than make up a
    batch. Without any clip the result is (0, 0). Runs on the device and in the dtype of the model's
    first parameter. uint8 clips are normalised there, as ``spec`` says.

    Raises:
        ValueError: the clips are uint8 and there is no ``spec``.
    """
    from r21d.video.transforms import Normalize

    home = next(model.parameters())
    normalize = None
    outputs = []
    for clips in _batches(parts, batch_size):
        clips = clips.to(home.device)
        if clips.dtype == torch.uint8:
            if spec is None:
                raise ValueError(
                    "clips are uint8 and nothing says how to normalise them: pass float32 clips, or"
                    " a dataset with a spec (r21d.video.InputSpec)"
                )
            normalize = normalize or Normalize(spec)
            clips = normalize(clips)
        clips = clips.to(home.dtype).contiguous(memory_format=torch.channels_last_3d)
        outputs.append(model(clips).float())
    return torch.cat(outputs).cpu() if outputs else torch.empty(0, 0)


def _batches(parts: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """The clips of all parts, ``size`` at a time."""
    held: list[Tensor] = []
    for part in parts:
        held.append(part)
        count = sum(map(len, held))
        if count >= size:
            clips = torch.cat(held) if len(held) > 1 else part
            whole = count - count % size
            # A copy: a view would keep all the others in memory, too.
            held = [clips[whole:].clone()] if whole < count else []
            yield from clips[:whole].split(size)
            del clips
    if held:
        yield torch.cat(held)


def score_clips(
    model: nn.Module, parts: Iterable[Tensor], batch_size: int = 16, spec: InputSpec | None = None
) -> Tensor:
    """Softmax scores, float32 (K, classes) on the CPU, of clips as `clip_logits` takes them.

    Raises:
        FloatingPointError: a score is infinite or NaN.
        ValueError: the clips are uint8 and there is no ``spec``.
    """
    with evaluating(model):
        scores = clip_logits(model, parts, batch_size, spec).softmax(1)
    if not scores.isfinite().all():
        raise FloatingPointError("the network's scores are not finite; its weights are damaged")
    return scores
