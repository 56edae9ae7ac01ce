"""BatchNorm over the clips of all processes: torch's SyncBatchNorm, and one that runs on a CPU.

Norms change their class in place: parameters, buffers and their names stay, so checkpoints, the
optimiser and DistributedDataParallel notice nothing.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from r21d_ops.autograd import Statistics, merge_across
from r21d_ops.functional import update_running
from r21d_ops.modules import Conv2Plus1D, FusedSequential, average_factor, matched_runs, sync_group

# Of x, weight and bias.
_ALL = [True, True, True]


class CPUSyncBatchNorm(nn.SyncBatchNorm):
    """``nn.SyncBatchNorm``, which refuses tensors on the CPU, for those too.

    x (N, C, ...) of any floating dtype. The statistics, float32 or x's own dtype where that is
    wider, are merged in float64 of every process's count, mean and squared deviations: processes
    may have batches of different sizes, or empty ones. Gradients of x are exact; those of the
    parameters are each process's own part of the sum, which DistributedDataParallel averages.
    """

    def forward(self, input: Tensor) -> Tensor:
        """x (N, C, ...) -> the same shape and dtype."""
        group = sync_group(self)
        if input.device.type != "cpu":
            return super().forward(input)
        if group is None:
            # nn.SyncBatchNorm refuses the CPU as soon as there is a group, of one process, too.
            return _BatchNorm.forward(self, input)
        if input.dim() < 2 or input.shape[1] != self.num_features:
            raise ValueError(
                f"input must be of shape (N, {self.num_features}, ...), got {tuple(input.shape)}"
            )
        return _untraced_share()(self, input, group)


@functools.cache
def _untraced_share() -> Callable[[nn.SyncBatchNorm, Tensor, dist.ProcessGroup], Tensor]:
    """Collectives inside an autograd function are beyond torch.compile's tracing. What keeps it
    from them imports all of it, a second that only those who train so should wait."""
    share: Callable[..., Tensor] = torch.compiler.disable(_share)
    return share


def _share(norm: nn.SyncBatchNorm, x: Tensor, group: dist.ProcessGroup) -> Tensor:
    momentum = average_factor(norm)
    y, mean, unbiased, values = _Normalize.apply(x, norm.weight, norm.bias, norm.eps, group)
    if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
        update_running(norm.running_mean, norm.running_var, mean, unbiased, values, momentum)
    return y


class _Normalize(Function):
    """y, and over all processes the mean, unbiased variance and values a channel of x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        group: dist.ProcessGroup,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = _wide(x)
        mean, m2, values = merge_across(group, _statistics(wide))
        if values == 1:
            raise ValueError(
                "Expected more than 1 value per channel when training, got an input of shape "
                f"{tuple(x.shape)} and none in the other processes"
            )
        unbiased = (m2 / (values - 1)).to(wide.dtype)
        mean, variance, values = (v.to(wide.dtype) for v in (mean, m2 / values, values))
        ctx.save_for_backward(x, weight, mean, variance, values)
        ctx.eps, ctx.group = eps, group
        # Copies: what is saved must not be an output.
        outputs = mean.clone(), unbiased, values.clone()
        ctx.mark_non_differentiable(*outputs)
        ctx.set_materialize_grads(False)
        y = F.batch_norm(wide, mean, variance, _like(weight, wide), _like(bias, wide), eps=eps)
        return y.to(x.dtype), *outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 5
        x, weight, mean, variance, values = ctx.saved_tensors
        wide, weight_wide = _wide(x), _like(weight, mean)
        if x.numel():
            # With statistics taken as constants: scale * grad, and this process's two sums.
            grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
                _wide(grad), wide, weight_wide, mean, variance, None, None, False, ctx.eps, _ALL
            )
        else:
            grad_x = torch.empty_like(wide)
            grad_weight, grad_bias = torch.zeros_like(mean), torch.zeros_like(mean)
        sums = torch.cat([grad_bias, grad_weight])
        # Also by a process with an empty batch: the others wait for it.
        dist.all_reduce(sums, group=ctx.group)
        sum_g, sum_gx = sums.chunk(2)
        # What the mean and the variance, sums over all processes, pass on to each value.
        invstd = torch.rsqrt(variance + ctx.eps)
        scale = invstd if weight_wide is None else invstd * weight_wide
        factor = -scale * invstd * sum_gx / values
        offset = -scale * sum_g / values - factor * mean
        shape = (1, -1, *(1,) * (x.dim() - 2))
        grad_x = grad_x.add_(offset.view(shape)).addcmul_(wide, factor.view(shape))
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        return (
            grad_x.to(x.dtype) if need_x else None,
            grad_weight.to(weight.dtype) if need_weight else None,
            grad_bias if need_bias else None,
            None,
            None,
        )


def _statistics(x: Tensor) -> Statistics:
    """This process's own, float64."""
    count = torch.tensor(x.numel() // x.shape[1], dtype=torch.float64)
    if not x.numel():
        none = count.new_zeros(x.shape[1])
        return Statistics(none, none, count)
    axes = [axis for axis in range(x.dim()) if axis != 1]
    variance, mean = torch.var_mean(x, axes, correction=0)
    return Statistics(mean.double(), variance.double() * count, count)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _like(vector: Tensor | None, wide: Tensor) -> Tensor | None:
    return None if vector is None else vector.to(wide.dtype)


def convert_sync_batch_norm(model: nn.Module) -> None:
    """Make the plain BatchNorms of ``model`` share their statistics over all processes, in place.

    On the CPU those between the convolutions of a fused (2+1)D convolution become
    ``nn.SyncBatchNorm`` itself, whose statistics the fused operator shares anywhere, and which it
    knows; the others `CPUSyncBatchNorm`. On a GPU all become ``nn.SyncBatchNorm``.
    """
    fused = _fused_norms(model)
    for norm in _norms(model, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
        cpu = next(norm.buffers(), next(norm.parameters(), torch.empty(0))).device.type == "cpu"
        norm._plain_class = type(norm)
        norm.__class__ = CPUSyncBatchNorm if cpu and norm not in fused else nn.SyncBatchNorm
        norm.process_group = None


def restore_batch_norm(model: nn.Module) -> None:
    """Undo `convert_sync_batch_norm`: each norm is of its own class again."""
    for norm in _norms(model, (CPUSyncBatchNorm, nn.SyncBatchNorm)):
        if "_plain_class" in norm.__dict__:
            norm.__class__ = norm._plain_class
            del norm._plain_class, norm.process_group


@contextlib.contextmanager
def local_statistics(model: nn.Module) -> Iterator[None]:
    """A block in which each process's BatchNorms are its own, as `restore_batch_norm` leaves them.

    For validation, which has no statistics to share, and in which the fused operator takes in a
    plain BatchNorm that follows it.
    """
    norms = _norms(model, (CPUSyncBatchNorm, nn.SyncBatchNorm))
    classes = [type(norm) for norm in norms]
    for norm in norms:
        norm.__class__ = norm.__dict__.get("_plain_class", nn.BatchNorm3d)
    try:
        yield
    finally:
        for norm, kind in zip(norms, classes, strict=True):
            norm.__class__ = kind


def _norms(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[Any]:
    """The modules of exactly these classes: one's own BatchNorm may be a frozen one."""
    return [module for module in model.modules() if type(module) in kinds]


def _fused_norms(model: nn.Module) -> set[nn.Module]:
    """The norms that run inside the fused operator."""
    found: set[nn.Module] = set()
    for module in model.modules():
        if type(module) in (Conv2Plus1D, FusedSequential):
            children = list(module.children())
            found.update(children[start + 1] for start in matched_runs(children))
    return found
