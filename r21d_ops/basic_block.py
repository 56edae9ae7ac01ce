"""The residual block whose two (2+1)D convolutions and outer BatchNorms train as one function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn

from r21d_ops.arguments import autocast, check_arguments
from r21d_ops.backends import choose, forced_name, get_backend
from r21d_ops.block_function import BlockConvolution, BlockNorm, residual_block
from r21d_ops.functional import has_tangent
from r21d_ops.modules import (
    NORMS,
    Conv2Plus1D,
    conv_norm_act,
    norm_arguments,
    sync_group,
    why_not_fused,
    why_not_plain,
)
from r21d_ops.problem import Problem, Triple, output_size, triple


def _geometry(spatial: nn.Conv3d, temporal: nn.Conv3d) -> tuple[Triple, Triple]:
    """Stride and padding of both, (t, h, w)."""
    stride = triple((temporal.stride[0], *spatial.stride[1:]), "stride")
    padding = (int(temporal.padding[0]), *(int(p) for p in spatial.padding[1:]))
    return stride, triple(padding, "padding")


def _of_problem(problem: Problem, spatial: nn.Conv3d, temporal: nn.Conv3d) -> Problem | None:
    """The problem of a second convolution on the output of the first's, if they fit together."""
    kernel = triple((temporal.kernel_size[0], *spatial.kernel_size[1:]), "kernel_size")
    stride, padding = _geometry(spatial, temporal)
    if spatial.in_channels != problem.out_channels:
        return None
    sizes = zip(problem.out_size, kernel, stride, padding, strict=True)
    if any(output_size(*size) < 1 for size in sizes):
        return None
    channels = (spatial.in_channels, spatial.out_channels, temporal.out_channels)
    return Problem(
        problem.device, problem.dtype, problem.batch, *channels, problem.out_size, kernel, stride,
        padding,
    )  # fmt: skip


def _uses_batch(norm: nn.Module) -> bool:
    assert isinstance(norm, (nn.BatchNorm3d, nn.SyncBatchNorm))
    return norm.training or norm.running_mean is None


def _block_norm(norm: nn.Module) -> BlockNorm:
    """Of a BatchNorm that is about to be applied: in training, this counts the batch."""
    given = norm_arguments(norm)
    running = None
    if given.running_mean is not None and given.running_var is not None:
        running = (given.running_mean, given.running_var)
    frozen = (None, None) if given.batch_statistics or running is None else running
    return BlockNorm(
        given.weight,
        given.bias,
        given.eps,
        frozen,
        running if given.batch_statistics else None,
        given.momentum,
        sync_group(norm),
    )


def run_block(
    first: Sequence[nn.Module],
    first_norm: nn.Module,
    second: Sequence[nn.Module],
    second_norm: nn.Module,
    x: Tensor,
    shortcut: Tensor | None = None,
    recompute: tuple[bool, bool] = (False, False),
) -> Tensor | None:
    """relu(second_norm(second(relu(first_norm(first(x))))) + shortcut) as one function.

    None where it does not run so: without gradients and batch statistics, where an epilogue in
    inference is faster; where a layer carries something of its own or a tensor is of another dtype
    or shape; where the convolutions are served by different backends, or by one without ``BLOCKS``;
    with a ``SyncBatchNorm`` on a GPU unless ``R21D_BACKEND`` names the backend.

    Args:
        first, second: Conv3d(1×d×d), BatchNorm, ReLU, Conv3d(t×1×1).
        first_norm, second_norm: the BatchNorms behind them.
        x: (N, C, T, H, W).
        shortcut: what is added, of the output's shape; None is ``x``.
        recompute: for each convolution whether its intermediate is made again in backward.
    """
    norms = (first[1], first_norm, second[1], second_norm) if len(first) == len(second) == 4 else ()
    if not norms or any(why_not_plain(norm, NORMS) is not None for norm in norms):
        return None
    if why_not_fused(first) is not None or why_not_fused(second) is not None:
        return None
    spatial, temporal = first[0], first[3]
    spatial2, temporal2 = second[0], second[3]
    assert isinstance(spatial, nn.Conv3d) and isinstance(temporal, nn.Conv3d)
    assert isinstance(spatial2, nn.Conv3d) and isinstance(temporal2, nn.Conv3d)
    layers = (*first, first_norm, *second, second_norm)
    parameters = [p for layer in layers for p in layer._parameters.values() if p is not None]
    wanted = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, shortcut, *parameters)
    )
    if not wanted and not any(map(_uses_batch, norms)):
        return None
    if has_tangent(x, shortcut, *parameters, *(b for layer in layers for b in layer.buffers())):
        return None
    shared = any(sync_group(norm) is not None for norm in norms)
    if shared and x.is_cuda and forced_name(None) is None:
        # The backend may depend on the batch, which may be another in other processes, and those
        # who share statistics must exchange the same.
        return None
    added = x if shortcut is None else shortcut
    given, *weights = autocast(x, spatial.weight, temporal.weight, None)[:3]
    _, *weights2 = autocast(x, spatial2.weight, temporal2.weight, None)[:3]
    stride, padding = _geometry(spatial, temporal)
    problem = check_arguments(
        given, *weights, stride=stride, padding=padding, mid_vectors={}, out_vectors={},
        residual=None,
    )  # fmt: skip
    then = _of_problem(problem, spatial2, temporal2)
    if then is None or any(weight.dtype != given.dtype for weight in weights2):
        return None
    features = [norm.num_features for norm in (first_norm, second_norm)]
    if features != [problem.out_channels, then.out_channels]:
        return None
    if added.shape != (then.batch, then.out_channels, *then.out_size):
        return None
    if added.dtype != given.dtype or added.device != given.device:
        return None
    # A single value a channel has no variance: stock BatchNorm says so.
    sizes = (problem.mid_size, problem.out_size, then.mid_size, then.out_size)
    for norm, (t, h, w) in zip(norms, sizes, strict=True):
        alone = _uses_batch(norm) and sync_group(norm) is None
        if alone and problem.batch * t * h * w == 1:
            return None
    name = choose(problem, training=True)
    if choose(then, training=True) != name or not getattr(get_backend(name), "BLOCKS", False):
        return None
    return residual_block(
        given,
        shortcut,
        (
            BlockConvolution(weights, problem.stride, problem.padding, recompute[0]),
            BlockConvolution(weights2, then.stride, then.padding, recompute[1]),
        ),
        [_block_norm(norm) for norm in norms],
        name,
    )


def _is_plain(conv: nn.Module) -> TypeGuard[Conv2Plus1D]:
    return why_not_plain(conv, (Conv2Plus1D,)) is None


class FusedBasicBlock(nn.Module):
    """Two (2+1)D convolutions with BatchNorm around a shortcut (paper, Table 1).

    Trained as one function on backends with kernels for it (``cuda``), as two operators and stock
    BatchNorms on others; two operators in inference.

    torchvision's ``BasicBlock`` with its state-dict keys (``conv1.0.*``, ``conv1.1.*``,
    ``conv2.0.*``, ``conv2.1.*``, ``downsample.*``) and arguments, so it serves as the ``block`` of
    its ``VideoResNet``. Input (N, in_planes, T, H, W), output (N, planes, T', H', W').

    Args:
        in_planes, planes: channels.
        conv_builder: makes the convolutions; :class:`~r21d_ops.Conv2Plus1D` or another class with
            its arguments, which then runs layer by layer.
        stride: of the first convolution, in time and space.
        downsample: the shortcut where the block changes the shape; None is the identity.
    """

    fused_by_itself = True
    expansion = 1

    def __init__(
        self,
        in_planes: int,
        planes: int,
        conv_builder: Callable[..., nn.Module] = Conv2Plus1D,
        stride: int = 1,
        downsample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        # torchvision's: computed once, and used by both convolutions.
        midplanes = (in_planes * planes * 3 * 3 * 3) // (in_planes * 3 * 3 + 3 * planes)
        self.conv1 = nn.Sequential(
            conv_builder(in_planes, planes, midplanes, stride),
            nn.BatchNorm3d(planes),
            nn.ReLU(inplace=True),
        )
        self.conv2 = nn.Sequential(conv_builder(planes, planes, midplanes), nn.BatchNorm3d(planes))
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """x (N, in_planes, T, H, W) -> (N, planes, T', H', W')."""
        shortcut = None if self.downsample is None else self.downsample(x)
        if not self._layers_as_built():
            return self.relu(self.conv2(self.conv1(x)) + (x if shortcut is None else shortcut))
        conv1, conv2 = self.conv1[0], self.conv2[0]
        if _is_plain(conv1) and _is_plain(conv2):
            recompute = (conv1.recompute, conv2.recompute)
            convolutions = (tuple(conv1), self.conv1[1], tuple(conv2), self.conv2[1])
            out = run_block(*convolutions, x, shortcut, recompute)
            if out is not None:
                return out
        residual = x if shortcut is None else shortcut
        y = conv_norm_act(conv1, self.conv1[1], x, relu=True)
        return conv_norm_act(conv2, self.conv2[1], y, residual=residual, relu=True)

    def _layers_as_built(self) -> bool:
        # The two sequences and the two activations are not called, so a hook on one of them, or
        # another layer put in its place, would silently be passed over.
        return (
            len(self.conv1) == 3
            and len(self.conv2) == 2
            and why_not_plain(self.conv1, (nn.Sequential,)) is None
            and why_not_plain(self.conv1[2], (nn.ReLU,)) is None
            and why_not_plain(self.conv2, (nn.Sequential,)) is None
            and why_not_plain(self.relu, (nn.ReLU,)) is None
        )
