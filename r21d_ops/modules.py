"""Drop-in modules: an ``nn.Sequential`` whose (2+1)D run goes through the fused operator.

Children stay what they are, ``Conv3d``, ``BatchNorm3d`` (or ``SyncBatchNorm``), ``ReLU`` and
``Conv3d``, so state dicts, parameter groups and converters keep working. Where a child carries
something that the operator would step over (a hook, a parametrization, an adapter, a type it does
not know), the children are run one by one; :func:`r21d_ops.fuse_report` says so.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.modules.module as nn_module
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from r21d_ops import functional
from r21d_ops.arguments import autocast, check_arguments
from r21d_ops.autograd import fold_norm
from r21d_ops.frozen import frozen_eps
from r21d_ops.problem import paper_midplanes, triple

#: The classes of torch.nn that the operator's BatchNorm stands for.
NORMS: tuple[type[nn.Module], ...] = (nn.BatchNorm3d, nn.SyncBatchNorm)
# The last two stand for plain tensors while torch.export and torch.compile trace.
TENSORS = (nn.Parameter, Tensor, FakeTensor, FunctionalTensor)
_GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def why_not_plain(module: nn.Module, types: tuple[type, ...]) -> str | None:
    """Why ``module`` is not exactly one of ``types`` without additions, or None.

    What is not plain must be called as a module: a hook on it, or another layer in its place,
    would otherwise be passed over.
    """
    if any(len(getattr(nn_module, hooks)) for hooks in _GLOBAL_HOOKS):
        return "a global module hook is registered"
    if type(module) not in types:
        names = " or ".join(t.__name__ for t in types)
        return f"{type(module).__name__} in place of {names}"
    if any(len(getattr(module, hooks)) for hooks in _HOOKS):
        return f"{type(module).__name__} carries a hook"
    if "forward" in module.__dict__:
        return f"{type(module).__name__} has a forward of its own"
    for name, parameter in module._parameters.items():
        if parameter is not None and type(parameter) not in TENSORS:
            return f"{type(module).__name__}.{name} is a {type(parameter).__name__}"
    return None


def _plain_conv(conv: nn.Module, axis: str) -> str | None:
    """Why ``conv`` is not a plain spatial (1×d×d) or temporal (t×1×1) convolution, or None."""
    reason = why_not_plain(conv, (nn.Conv3d,))
    if reason is not None:
        return reason
    assert isinstance(conv, nn.Conv3d)
    kernel, stride, padding = conv.kernel_size, conv.stride, conv.padding
    if isinstance(padding, str):
        return f"padding {padding!r}"
    off_axes = (0,) if axis == "spatial" else (1, 2)
    if any((kernel[i], stride[i], padding[i]) != (1, 1, 0) for i in off_axes):
        return f"kernel {kernel} with stride {stride} and padding {padding} is not {axis} alone"
    if conv.bias is not None:
        return f"the {axis} convolution has a bias"
    if conv.groups != 1 or tuple(conv.dilation) != (1, 1, 1) or conv.padding_mode != "zeros":
        return f"groups, dilation or padding mode of the {axis} convolution"
    return None


def why_not_fused(
    children: Sequence[nn.Module], norms: tuple[type[nn.Module], ...] = NORMS
) -> str | None:
    """Why four children are not the run Conv3d(1×d×d), BatchNorm, ReLU, Conv3d(t×1×1), or None.

    ``norms`` are the classes that count as BatchNorm; one that is not in ``NORMS`` must have been
    found to be frozen (:mod:`r21d_ops.frozen`).
    """
    if len(children) != 4:
        return f"{len(children)} layers instead of 4"
    spatial, norm, relu, temporal = children
    reason = (
        _plain_conv(spatial, "spatial")
        or why_not_plain(norm, norms)
        or why_not_plain(relu, (nn.ReLU,))
        or _plain_conv(temporal, "temporal")
    )
    if reason is not None:
        return reason
    assert isinstance(spatial, nn.Conv3d) and isinstance(temporal, nn.Conv3d)
    if not spatial.out_channels == _features(norm) == temporal.in_channels:
        return "channels of the four layers do not fit together"
    if len({t.device for t in _tensors(children)}) > 1:
        return "its layers are on different devices"
    if type(norm) not in NORMS and any(t.requires_grad for t in _statistics(norm)):
        return f"the statistics of {type(norm).__name__} want a gradient"
    if spatial.weight.dtype != temporal.weight.dtype:
        return "its convolutions have different dtypes"
    return None


def _features(norm: nn.Module) -> int:
    if isinstance(norm, (nn.BatchNorm3d, nn.SyncBatchNorm)):
        return norm.num_features
    mean, _ = _statistics(norm)
    return mean.numel()


def _statistics(frozen: nn.Module) -> tuple[Tensor, Tensor]:
    mean, variance = frozen.running_mean, frozen.running_var
    assert isinstance(mean, Tensor) and isinstance(variance, Tensor)
    return mean, variance


def _tensors(children: Sequence[nn.Module]) -> list[Tensor]:
    return [
        t
        for child in children
        for t in (*child._parameters.values(), *child._buffers.values())
        if t is not None
    ]


def sync_group(norm: nn.Module) -> dist.ProcessGroup | None:
    """The group over which a SyncBatchNorm in training shares its statistics, if there is one."""
    if not isinstance(norm, nn.SyncBatchNorm) or not norm.training:
        return None
    if not dist.is_available() or not dist.is_initialized():
        return None
    group = dist.group.WORLD if norm.process_group is None else norm.process_group
    return group if dist.get_world_size(group) > 1 else None


class NormArguments(NamedTuple):
    """What the operator needs of a BatchNorm, whose class may be somebody's frozen one."""

    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    batch_statistics: bool
    momentum: float


def norm_arguments(norm: nn.Module) -> NormArguments:
    """Of a norm that is about to be applied: in training, this counts the batch."""
    if isinstance(norm, (nn.BatchNorm3d, nn.SyncBatchNorm)) and type(norm) in NORMS:
        # As in nn.BatchNorm3d: the running statistics are updated in training, used in eval.
        keeps_running = not norm.training or norm.track_running_stats
        return NormArguments(
            norm.running_mean if keeps_running else None,
            norm.running_var if keeps_running else None,
            norm.weight,
            norm.bias,
            norm.eps,
            norm.training or norm.running_mean is None,
            average_factor(norm),
        )
    frozen: Any = norm
    vectors = (frozen.running_mean, frozen.running_var, frozen.weight, frozen.bias)
    return NormArguments(*vectors, frozen_eps(norm), False, 0.0)


def average_factor(norm: nn.BatchNorm3d | nn.SyncBatchNorm) -> float:
    """Counts the batch and returns the weight of its statistics, as ``nn.BatchNorm3d`` does."""
    if norm.training and norm.track_running_stats and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            return 1.0 / float(norm.num_batches_tracked)
    return 0.0 if norm.momentum is None else norm.momentum


def run_fused(
    children: Sequence[nn.Module],
    x: Tensor,
    *,
    out_scale: Tensor | None = None,
    out_shift: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
    recompute: bool = False,
) -> Tensor:
    """Four children for which :func:`why_not_fused` is None, as one operator."""
    spatial, norm, _, temporal = children
    assert isinstance(spatial, nn.Conv3d) and isinstance(temporal, nn.Conv3d)
    x, spatial_weight, temporal_weight, residual = autocast(
        x, spatial.weight, temporal.weight, residual
    )
    problem = check_arguments(
        x,
        spatial_weight,
        temporal_weight,
        stride=(temporal.stride[0], *spatial.stride[1:]),
        padding=(int(temporal.padding[0]), *(int(p) for p in spatial.padding[1:])),
        mid_vectors={},
        out_vectors={},
        residual=residual,
    )
    arguments = norm_arguments(norm)
    return functional.run(
        problem,
        x,
        spatial_weight,
        temporal_weight,
        running_mean=arguments.running_mean,
        running_var=arguments.running_var,
        bn_weight=arguments.weight,
        bn_bias=arguments.bias,
        batch_statistics=arguments.batch_statistics,
        momentum=arguments.momentum,
        eps=arguments.eps,
        recompute=recompute,
        out_scale=out_scale,
        out_shift=out_shift,
        residual=residual,
        relu=relu,
        backend=None,
        group=sync_group(norm),
    )


class Conv2Plus1D(nn.Sequential):
    """(2+1)D convolution: spatial conv, BatchNorm, ReLU, temporal conv, run as one operator.

    An ``nn.Sequential(Conv3d, BatchNorm3d, ReLU, Conv3d)`` with torchvision's state-dict keys
    (``0.weight``, ``1.*``, ``3.weight``) and positional arguments, so it serves as an entry of
    torchvision's ``conv_makers``. Input (N, in_planes, T, H, W), output
    (N, out_planes, T', H', W').

    Args:
        in_planes, out_planes: channels.
        midplanes: channels M between the convolutions; None computes the paper's M (section 3.5).
        stride, padding, kernel_size: an int or (t, h, w).
        eps, momentum: BatchNorm's.

    Raises:
        ValueError: an argument out of range; also where the paper's formula gives M = 0.

    Attributes:
        recompute: set True to keep only the input for backward (default False).
    """

    recompute: bool = False

    def __init__(
        self,
        in_planes: int,
        out_planes: int,
        midplanes: int | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 1,
        *,
        kernel_size: int | Sequence[int] = 3,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
    ) -> None:
        kt, kh, kw = triple(kernel_size, "kernel_size")
        st, sh, sw = triple(stride, "stride")
        pt, ph, pw = triple(padding, "padding")
        if midplanes is None:
            midplanes = paper_midplanes(in_planes, out_planes, (kt, kh, kw))
        for name, planes in (
            ("in_planes", in_planes),
            ("out_planes", out_planes),
            ("midplanes", midplanes),
        ):
            if planes < 1:
                raise ValueError(f"{name} must be at least 1, got {planes}")
        super().__init__(
            nn.Conv3d(in_planes, midplanes, (1, kh, kw), (1, sh, sw), (0, ph, pw), bias=False),
            nn.BatchNorm3d(midplanes, eps, momentum),
            nn.ReLU(inplace=True),
            nn.Conv3d(midplanes, out_planes, (kt, 1, 1), (st, 1, 1), (pt, 0, 0), bias=False),
        )

    @staticmethod
    def get_downsample_stride(stride: int) -> tuple[int, int, int]:
        """The stride of a block's shortcut, as torchvision asks its ``conv_makers`` for it."""
        return stride, stride, stride

    def __getitem__(self, index: slice | int) -> Any:
        """A layer, or for a slice a plain ``nn.Sequential`` of the layers."""
        if isinstance(index, slice):
            return nn.Sequential(OrderedDict(list(self._modules.items())[index]))
        return super().__getitem__(index)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, T, H, W) -> (N, O, T', H', W')."""
        children = tuple(self._modules.values())
        if why_not_fused(children) is not None:
            return super().forward(x)
        return run_fused(children, x, recompute=self.recompute)


def matched_runs(children: Sequence[nn.Module]) -> list[int]:
    """Where in ``children`` a run of four that the operator can serve begins, left to right."""
    starts = []
    i = 0
    while i + 4 <= len(children):
        if why_not_fused(children[i : i + 4]) is None:
            starts.append(i)
            i += 4
        else:
            i += 1
    return starts


class FusedSequential(nn.Sequential):
    """An ``nn.Sequential`` that runs each (2+1)D run among its children as one operator.

    Keys stay those of the sequence it replaces, as in the stem of R(2+1)D: conv, bn, relu, conv,
    bn, relu, whose last two become the operator's epilogue in eval.

    Attributes:
        recompute: as :class:`Conv2Plus1D` has it, for every run.
    """

    recompute: bool = False

    def forward(self, x: Tensor) -> Tensor:
        """The sequence's input and output."""
        children = tuple(self._modules.values())
        starts = matched_runs(children)
        i = 0
        while i < len(children):
            if i not in starts:
                x = children[i](x)
                i += 1
                continue
            run = children[i : i + 4]
            following = children[i + 4 : i + 6]
            if len(following) == 2 and folds(following[0]) and is_plain_relu(following[1]):
                x = run_with_norm(run, following[0], x, None, True)
                i += 6
            else:
                x = run_fused(run, x, recompute=self.recompute)
                i += 4
        return x


def is_plain_relu(module: nn.Module) -> bool:
    """Whether ``module`` may be stepped over by applying ReLU."""
    return why_not_plain(module, (nn.ReLU,)) is None


def folds(norm: nn.Module, norms: tuple[type[nn.Module], ...] = NORMS) -> bool:
    """Whether ``norm`` after a fused run is a constant scale and shift that needs no gradient.

    ``norms`` as for :func:`why_not_fused`.
    """
    if torch.is_grad_enabled() or why_not_plain(norm, norms) is not None:
        return False
    if isinstance(norm, (nn.BatchNorm3d, nn.SyncBatchNorm)) and type(norm) in NORMS:
        return not norm.training and norm.running_mean is not None and norm.running_var is not None
    return True


def run_with_norm(
    children: Sequence[nn.Module],
    norm: nn.Module,
    x: Tensor,
    residual: Tensor | None,
    relu: bool,
) -> Tensor:
    """relu(norm(run(x)) + residual) as one operator, for a norm that :func:`folds`."""
    arguments = norm_arguments(norm)
    assert arguments.running_mean is not None and arguments.running_var is not None
    scale, shift = fold_norm(
        arguments.running_mean,
        arguments.running_var,
        arguments.weight,
        arguments.bias,
        arguments.eps,
        x.dtype,
    )
    return run_fused(
        children,
        x,
        out_scale=scale,
        out_shift=shift,
        residual=residual,
        relu=relu,
    )


def conv_norm_act(
    conv: nn.Module, norm: nn.Module, x: Tensor, residual: Tensor | None = None, relu: bool = False
) -> Tensor:
    """relu(norm(conv(x)) + residual), the tail of a residual block (paper, Fig. 2 and section 3).

    Where ``conv`` is a :class:`Conv2Plus1D` that runs fused and ``norm`` is frozen with no gradient
    wanted, norm, residual and ReLU are the operator's epilogue; elsewhere they are stock layers.
    A class whose forward calls this says ``fused_by_itself = True``, so that ``fuse`` passes it by.
    """
    if why_not_plain(conv, (Conv2Plus1D,)) is None and folds(norm):
        assert isinstance(conv, Conv2Plus1D)
        children = tuple(conv._modules.values())
        if why_not_fused(children) is None:
            return run_with_norm(children, norm, x, residual, relu)
    y: Any = norm(conv(x))
    if residual is not None:
        y = y + residual
    return torch.relu(y) if relu else y
