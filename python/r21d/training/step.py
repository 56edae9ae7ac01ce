"""One step of training: forward, loss, backward, update."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from r21d.evaluation.distributed import Ranks
from r21d.seeds import text_seed
from r21d.training.config import TrainConfig
from r21d.training.logs import StepTimer
from r21d.training.optimizer import build_optimizer, set_learning_rate
from r21d.training.parallel import agree, no_sync, peers_alive, wrap

if TYPE_CHECKING:
    from r21d.evaluation.evaluate import ClipDataset

SMALLEST_SCALE = 2.0**-10
"""Gradients that overflow float16 although the loss is scaled down to this are no accident."""


class TrainingDiverged(RuntimeError):
    """The loss or a gradient is no longer finite; the last good state stands."""


class Learner:
    """A network that learns from batches.

    Call `begin` before the first step, once a state is restored.

    Attributes:
        model: the network itself.
        optimizer: its optimiser.
        scaler: scales the loss of float16; does nothing otherwise.
        sums: float64 (3,): summed loss, right clips and clips of this process since the epoch
            began.
        found: the same of the last step.
        norm: the norm of its gradients.
        lr: its learning rate.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        ranks: Ranks,
        network_input: Callable[[Tensor], Tensor],
    ) -> None:
        self.model = model
        self.config = config
        self.ranks = ranks
        self.device = torch.device(config.device)
        self.network_input = network_input
        self.optimizer = build_optimizer(model, config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.dtype == "float16")
        # Kept on the device: each number read back makes the host wait for a GPU, and a step reads
        # one already, whether it may update the weights.
        self.sums = self._numbers(torch.zeros(3))
        self.found = self.sums
        self.norm = torch.zeros(())
        self.lr = config.lr
        self._network = model
        self._parameters = [p for group in self.optimizer.param_groups for p in group["params"]]

    def begin(self) -> None:
        """Make the network ready for steps; collective."""
        self._network = wrap(self.model, self.config, self.ranks)

    def step(
        self,
        number: int,
        lr: float,
        batches: Iterator[Any],
        timer: StepTimer,
        asked: Callable[[], int | None],
    ) -> tuple[bool, int]:
        """Step ``number`` of the run, from 0; collective.

        Args:
            number: also decides the step's random numbers.
            lr: the learning rate.
            batches: gives ``(clips, labels, videos)``.
            timer: told of the time spent on waiting for ``batches``.
            asked: number of the signal that asks to stop, or None.

        Returns:
            Whether the weights were updated, and the signal, or 0, that any process was asked
            to stop by.

        Raises:
            TrainingDiverged: the loss is infinite or NaN, or a gradient, other than by a scale too
                large for float16. The weights are as they were.
        """
        set_learning_rate(self.optimizer, lr)
        self.lr = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._numbers(torch.zeros(()))
        found = self._numbers(torch.zeros(3))
        last = self.config.accumulate - 1
        for micro in range(self.config.accumulate):
            with timer.waiting():
                clips, labels, _ = next(batches)
            torch.manual_seed(micro_seed(self.config.seed, number, micro, self.ranks.rank))
            alone = contextlib.nullcontext() if micro == last else no_sync(self._network)
            with peers_alive(self.ranks), alone:
                part, right, count = self._learn(clips, labels)
            loss += part / self.config.accumulate
            found += self._numbers(torch.stack([part * count, right, torch.full_like(part, count)]))
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        self.norm = nn.utils.get_total_norm(gradients)
        bad_loss, bad_norm, signal = self._agreed(loss, self.norm, asked() or 0)
        if bad_loss or (bad_norm and not self.scaler.is_enabled()):
            raise self._diverged(loss, bad_loss)
        if bad_norm:
            self._skip()
        else:
            if self.config.clip_gradients is not None:
                nn.utils.clip_grads_with_norm_(
                    self._parameters, self.config.clip_gradients, self.norm
                )
            self.optimizer.step()
            self.scaler.update()
        self.found = found
        self.sums += found
        return not bad_norm, signal

    def _learn(self, clips: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, int]:
        """Add a batch's gradients; its mean loss, how many clips are right, and of how many."""
        # (B, K, 3, T, H, W) -> (B * K, 3, T, H, W): every clip of a video has its label.
        labels = labels.repeat_interleave(clips.shape[1], dim=0)
        labels = labels.to(self.device, non_blocking=True)
        inputs = self.network_input(clips.flatten(0, 1))
        dtype = getattr(torch, self.config.dtype)
        autocast = torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)
        with autocast, enough_values():
            logits = self._network(inputs)
        logits = logits.float()
        loss = nn.functional.cross_entropy(
            logits, _targets(labels), label_smoothing=self.config.label_smoothing
        )
        self.scaler.scale(loss / self.config.accumulate).backward()
        return loss.detach(), _hits(logits.detach(), labels), len(labels)

    def _agreed(self, loss: Tensor, norm: Tensor, signal: int) -> tuple[int, int, int]:
        """Whether loss and norm are bad and the signal, the worst of all processes."""
        bad = torch.stack([~loss.isfinite(), ~norm.isfinite()]).int()
        flags = torch.cat([bad, torch.full_like(bad[:1], signal)])
        first, second, third = agree(flags, self.ranks, self.device).tolist()
        return first, second, third

    def _skip(self) -> None:
        """Leave the update out and scale the loss down."""
        scale = self.scaler.get_scale() * self.scaler.get_backoff_factor()
        if scale < SMALLEST_SCALE:
            raise TrainingDiverged(
                f"the gradients overflow float16 although the loss is scaled by {2 * scale:.3g}"
            )
        # Given: the norm of gradients that are finite each may overflow, too. Then the updates that
        # were made since the last one left out are counted from there, as where it is found.
        self.scaler.update(scale)
        self.scaler.load_state_dict({**self.scaler.state_dict(), "_growth_tracker": 0})

    def _diverged(self, loss: Tensor, bad_loss: int) -> TrainingDiverged:
        name, value = ("loss", loss.item()) if bad_loss else ("gradient norm", self.norm.item())
        found = f"the {name} is {value}"
        if math.isfinite(value):
            found = f"the {name} is no longer finite in another process"
        return TrainingDiverged(found)

    def _numbers(self, values: Tensor) -> Tensor:
        """On the device, in the widest type that it has."""
        wide = torch.float32 if self.device.type == "mps" else torch.float64
        return values.to(self.device, wide)


def place(model: nn.Module, config: TrainConfig) -> None:
    """Move ``model`` to the settings' device and memory layout, in place."""
    if not config.channels_last:
        model.to(config.device, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return
    model.to(config.device)
    # nn.Module.to would give 4-D tensors the layout, too, which do not have it.
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dim() == 5:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last_3d)


@contextlib.contextmanager
def enough_values() -> Iterator[None]:
    """A block in which a BatchNorm of too few values to have a variance says what would help.

    Raises:
        ValueError: there is one.
    """
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("Expected more than 1 value per channel"):
            raise
        raise ValueError(
            "a BatchNorm has a single value for each channel, and so no variance: raise "
            f"batch_size, crop or clip_len ({error})"
        ) from error


def network_input(dataset: ClipDataset, config: TrainConfig) -> Callable[[Tensor], Tensor]:
    """What makes the network's input of clips (N, 3, T, H, W): uint8 ones are normalised."""
    from r21d.video.transforms import Normalize

    spec = getattr(dataset, "spec", None)
    layout = torch.channels_last_3d if config.channels_last else torch.contiguous_format
    made: list[Normalize] = []

    def make(clips: Tensor) -> Tensor:
        clips = clips.to(config.device, non_blocking=True)
        if clips.dtype == torch.uint8:
            if spec is None:
                raise ValueError("train_set gives uint8 clips and has no spec to normalise them by")
            if not made:
                made.append(Normalize(spec))
            clips = made[0](clips)
        return clips.contiguous(memory_format=layout)

    return make


def micro_seed(seed: int, step: int, micro: int, rank: int) -> int:
    """Seed of what forward pass ``micro`` of a step draws in a process: dropout, that is."""
    return text_seed(f"{seed} step {step} {micro} {rank}")


def _targets(labels: Tensor) -> Tensor:
    """Class indices as they are; ones and zeros as a distribution over the ones."""
    return labels / labels.sum(1, keepdim=True) if labels.is_floating_point() else labels


def _hits(logits: Tensor, labels: Tensor) -> Tensor:
    """How many clips have their (or one of their) labels as top class."""
    top = logits.argmax(1)
    if labels.is_floating_point():
        return (labels.gather(1, top[:, None]) > 0).sum()
    return (top == labels).sum()
