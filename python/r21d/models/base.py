"""What every video network of this library can do beside computing logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, overload

import torch
from torch import nn

if TYPE_CHECKING:
    from r21d.video.transforms import InputSpec

Self = TypeVar("Self", bound="VideoModel")


class VideoModel(nn.Module):
    """A network over video clips: stages that run one after another, then a head.

    Input: float (N, in_channels, T, H, W); output: logits (N, num_classes).

    Attributes:
        stages: names of the submodules before the head, in the order they run.
        config: keyword arguments for :func:`r21d.create_model` that rebuild this network; plain
            JSON values.
        classes: label names in the order of the logits, or None while nobody has set them.
        input_spec: how clips for this network are made, or None.
    """

    stages: tuple[str, ...] = ()
    _head: str
    """Name of the last layer, the only one whose shape depends on the classes."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.classes: list[str] | None = None
        self.input_spec: InputSpec | None = None
        self._frozen: tuple[str, ...] = ()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, num_classes) of clips (N, in_channels, T, H, W).

        Raises:
            ValueError: wrong rank, channels or dtype, or clips without a frame or pixel.
        """
        self._check_input(x)
        for stage in self.stages:
            x = self._run_stage(stage, x)
        return self._classify(x)

    @overload
    def features(
        self, x: torch.Tensor, stages: str | None = None, pool: bool = True
    ) -> torch.Tensor: ...

    @overload
    def features(
        self, x: torch.Tensor, stages: list[str] | tuple[str, ...], pool: bool = True
    ) -> dict[str, torch.Tensor]: ...

    def features(
        self,
        x: torch.Tensor,
        stages: str | list[str] | tuple[str, ...] | None = None,
        pool: bool = True,
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """What the network sees in clips (N, in_channels, T, H, W), before it names classes.

        Args:
            x: clips, as for calling the model.
            stages: one of :attr:`stages`; None is the last one.  A list or tuple of names asks for
                several at once.
            pool: average over frames and pixels, (N, C); False returns the map (N, C, T', H', W').

        Returns:
            A tensor, or for several names a dict with one for each.

        Raises:
            ValueError: an unknown stage, no stage, or clips that the model does not take.
        """
        if stages is None:
            stages = self.stages[-1]
        wanted = [stages] if isinstance(stages, str) else list(stages)
        unknown = [name for name in wanted if name not in self.stages]
        if unknown or not wanted:
            raise ValueError(
                f"stages={stages!r} must name stages of the network: {', '.join(self.stages)}"
            )
        self._check_input(x)
        found: dict[str, torch.Tensor] = {}
        for stage in self.stages[: 1 + max(map(self.stages.index, wanted))]:
            x = self._run_stage(stage, x)
            if stage in wanted:
                found[stage] = x.mean((2, 3, 4)) if pool else x
        return found[stages] if isinstance(stages, str) else {name: found[name] for name in wanted}

    def replace_head(self, num_classes: int) -> None:
        """Give the network a fresh last layer for other classes; every other weight stays.

        ``config`` follows, and ``classes`` is None until somebody names the new ones.

        Raises:
            ValueError: ``num_classes`` is not a positive integer.
        """
        positive("num_classes", num_classes)
        weight = next(self.get_submodule(self._head).parameters())
        head = self._new_head(num_classes).to(device=weight.device, dtype=weight.dtype)
        setattr(self, self._head, head.train(self.training))
        self.config["num_classes"] = num_classes
        self.classes = None

    def freeze(self, groups: int) -> None:
        """Train only what follows the first ``groups`` of :attr:`stages`.

        Parameters of frozen stages ask for no gradient, and their BatchNorm stays in eval, also
        after ``train()``.  Another call thaws those that it does not name: ``freeze(0)`` all.
        What was frozen in another way stays so.

        Raises:
            ValueError: ``groups`` is not between 0 and the number of stages.
        """
        if isinstance(groups, bool) or not isinstance(groups, int):
            raise ValueError(f"groups must be an integer, got {groups!r}")
        if not 0 <= groups <= len(self.stages):
            raise ValueError(
                f"groups must be between 0 and {len(self.stages)} "
                f"({', '.join(self.stages)}), got {groups}"
            )
        for index, stage in enumerate(self.stages):
            if index < groups or stage in self._frozen:
                self.get_submodule(stage).requires_grad_(index >= groups)
        self._frozen = self.stages[:groups]
        self.train(self.training)

    def train(self: Self, mode: bool = True) -> Self:
        """As ``nn.Module.train``, but frozen stages stay in eval."""
        super().train(mode)
        for stage in self._frozen:
            self.get_submodule(stage).eval()
        return self

    def _run_stage(self, stage: str, x: torch.Tensor) -> torch.Tensor:
        return getattr(self, stage)(x)

    def _classify(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of the last stage's output."""
        raise NotImplementedError

    def _new_head(self, num_classes: int) -> nn.Module:
        """A freshly initialised last layer."""
        raise NotImplementedError

    def _check_input(self, x: torch.Tensor) -> None:
        channels = self.config["in_channels"]
        if x.dim() != 5 or x.shape[1] != channels or not x.is_floating_point():
            raise ValueError(
                f"x must be a floating-point tensor of shape (N, {channels}, T, H, W), got "
                f"{x.dtype} of shape {tuple(x.shape)}; frames (T, H, W, 3) become such clips "
                "through r21d.video.ClipTransform"
            )
        if any(size == 0 for size in x.shape[2:]):
            raise ValueError(
                f"x must have at least one frame and one pixel, got shape {tuple(x.shape)}"
            )


def positive(name: str, value: object) -> int:
    """``value``, or ValueError where it is not a positive integer."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return value


def in_range(name: str, value: float, low: float, high: float) -> float:
    """``value``, or ValueError where it is not a number in [low, high)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value < high:
        raise ValueError(f"{name} must be a number in [{low}, {high}), got {value!r}")
    return float(value)
