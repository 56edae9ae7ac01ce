"""The planner's estimate: each kernel is charged the larger of its arithmetic and its traffic.

Rates come from data sheets; which shares of them are reached is assumed. Nothing in this module was
measured, so that its seconds order the ways of running a problem and promise none of them. Not
modelled: launches, caches, the padding of odd channel counts. For the CUDA kernels their own
planner (``csrc/cuda/planner.h``) answers, which counts padding, waves of blocks, waits and L2, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from r21d_ops.dispatch import cuda_plan
from r21d_ops.dispatch.cost import ProblemCost, problem_cost
from r21d_ops.problem import Problem


class Gpu(NamedTuple):
    """One GPU: operations a second by arithmetic, bytes a second read plus written, and bytes of
    shared memory that a block may have and that a multiprocessor has."""

    multiprocessors: int
    flops: dict[str, float]
    bytes_per_second: float
    shared_block: int
    shared_multiprocessor: int

    @property
    def planned(self) -> cuda_plan.Device:
        """As the planner of the CUDA kernels asks for it."""
        shared = (self.shared_block, self.shared_multiprocessor)
        rates = (self.flops["bfloat16"], self.bytes_per_second)
        return cuda_plan.Device(self.multiprocessors, *shared, *rates)


#: Shares of the data sheet's rates that a matrix product and a large copy reach: 788 of an H200's
#: 989 TFLOP/s, 4.3 of its 4.8 TB/s. Assumed, as is that other GPUs and arithmetics reach the same.
_PRODUCT, _COPY = 788 / 989, 4.3 / 4.8

#: Shares of the matrix product's rate that convolutions reach. Assumed too. The last is the
#: planner's ``kProductShare``.
_TRITON, _CUDNN, _CUDA = 0.6, 0.7, 0.55

ASSUMPTIONS = (
    f"matrix products reach {_PRODUCT:.2f} and copies {_COPY:.2f} of the data sheet's rates, "
    f"convolutions in Triton {_TRITON:g}, in cuDNN {_CUDNN:g} and in the CUDA kernels {_CUDA:g} of "
    "the matrix product's; of the CUDA kernels padding, waits and L2 are counted, of others not"
)


def _gpu(
    multiprocessors: int,
    half: float,
    tf32: float,
    float32: float,
    terabytes: float,
    shared: tuple[int, int],
) -> Gpu:
    """The shares of peak TFLOP/s and TB/s that are assumed."""
    peaks = {"bfloat16": half, "float16": half, "tf32": tf32, "float32": float32}
    flops = {name: peak * 1e12 * _PRODUCT for name, peak in peaks.items()}
    return Gpu(multiprocessors, flops, terabytes * 1e12 * _COPY, *shared)


#: Shared memory in bytes, of a block and of a multiprocessor: compute capability 8.0 and 9.0.
_AMPERE, _HOPPER = (163 * 1024, 164 * 1024), (227 * 1024, 228 * 1024)


#: By the name that ``torch.cuda.get_device_name`` gives; peaks without sparsity.
GPUS: dict[str, Gpu] = {
    "NVIDIA H200": _gpu(132, 989, 494, 67, 4.8, _HOPPER),
    "NVIDIA H100 80GB HBM3": _gpu(132, 989, 494, 67, 3.35, _HOPPER),
    "NVIDIA H100 PCIe": _gpu(114, 756, 378, 51, 2.0, _HOPPER),
    "NVIDIA A100-SXM4-80GB": _gpu(108, 312, 156, 19.5, 2.039, _AMPERE),
    "NVIDIA A100-SXM4-40GB": _gpu(108, 312, 156, 19.5, 1.555, _AMPERE),
    "NVIDIA A100 80GB PCIe": _gpu(108, 312, 156, 19.5, 1.935, _AMPERE),
}

#: The first of the fused kernel's tiles (``triton/fused.py``), output pixels and output channels of
#: a program, by bytes of an element. Programs that share pixels each compute the intermediate for
#: themselves.
_FUSED_TILE = {2: (64, 64), 4: (32, 32)}

#: Output channels that one program of the fused kernel has, in 16 bits.
ONE_TILE = _FUSED_TILE[2][1]


class _Kernel(NamedTuple):
    """Operations and bytes of one launch, and the share of the matrix product's rate it reaches."""

    flops: float
    traffic: float
    share: float


def _fused(problem: Problem, cost: ProblemCost, gpu: Gpu) -> list[_Kernel]:
    _, height, width = problem.out_size
    tile_pixels, tile_columns = _FUSED_TILE[problem.dtype.itemsize]
    columns = -(-problem.out_channels // tile_columns)
    programs = -(-max(1, problem.batch) * height * width // tile_pixels) * columns

    def charged(chunks: int) -> float:
        frames = -(-problem.out_size[0] // chunks)
        seen = (frames - 1) * problem.stride[0] + problem.kernel[0]
        # (L+2)/L: chunks overlap by the temporal kernel. One chunk sees every frame once.
        again = 1.0 if chunks == 1 else chunks * seen / problem.size[0]
        flops = cost.spatial_flops * columns * max(1.0, again) + cost.temporal_flops
        return flops / min(1.0, programs * chunks / gpu.multiprocessors)

    flops = min(charged(chunks) for chunks in range(1, problem.out_size[0] + 1))
    return [_Kernel(flops, cost.fused_bytes, _TRITON)]


def _convolutions(cost: ProblemCost, share: float) -> list[_Kernel]:
    """The spatial and the temporal convolution, each reading and writing its tensors once."""
    spatial = cost.input + cost.spatial_weight + cost.mid
    temporal = cost.mid + cost.temporal_weight + cost.output
    return [
        _Kernel(cost.spatial_flops, spatial, share),
        _Kernel(cost.temporal_flops, temporal, share),
    ]


def _two(problem: Problem, cost: ProblemCost, gpu: Gpu) -> list[_Kernel]:
    return _convolutions(cost, _TRITON)


def _eager(problem: Problem, cost: ProblemCost, gpu: Gpu) -> list[_Kernel]:
    relu = _Kernel(0, 2 * cost.mid, _CUDNN)
    return [*_convolutions(cost, _CUDNN), relu]


def _training(cost: ProblemCost, folded: int, share: float) -> list[_Kernel]:
    """The six convolutions of a step. ``folded`` 1: BatchNorm's backward and the ReLU mask are part
    of three of them, which read u beside the gradient; 0: they are not."""
    spatial, temporal = _convolutions(cost, share)
    reads_u = folded * cost.mid
    dgrad = temporal._replace(traffic=temporal.traffic + reads_u)
    gradients = spatial._replace(traffic=spatial.traffic + reads_u)
    return [spatial, temporal, dgrad, temporal, gradients, gradients]


def _triton_training(problem: Problem, cost: ProblemCost, gpu: Gpu) -> list[_Kernel]:
    return _training(cost, 1, _TRITON)


#: Elementwise reads and writes of u's size in a training step of ``backends/eager.py``, in the
#: tensors' dtype and in float32, and those that converting 16-bit tensors to float32 adds.
_EAGER_NARROW, _EAGER_WIDE, _CONVERSIONS = 13, 17, 4


def _eager_training(problem: Problem, cost: ProblemCost, gpu: Gpu) -> list[_Kernel]:
    converts = _CONVERSIONS if problem.dtype.itemsize == 2 else 0
    wide = 4 / problem.dtype.itemsize
    passes = _EAGER_NARROW + converts + (_EAGER_WIDE + converts) * wide
    return [*_training(cost, 0, _CUDNN), _Kernel(0, passes * cost.mid, _CUDNN)]


_Way = Callable[[Problem, ProblemCost, Gpu], list[_Kernel]]

#: (backend, kernels) by whether a step is trained; of equals the first is taken.
_WAYS: dict[bool, dict[tuple[str, str], _Way]] = {
    False: {("triton", "fused"): _fused, ("triton", "two"): _two, ("eager", ""): _eager},
    True: {("triton", ""): _triton_training, ("eager", ""): _eager_training},
}


class Planner(NamedTuple):
    """How a backend's own library plans.

    Attributes:
        ways: the seconds of ``fused`` and ``two`` on a device, those that can run, and why not
            ``fused``, or nothing.
        training: the seconds of a training step; None where it cannot run.
        most_live: output frames that one kernel sums at a time, at most.
        arithmetic: what it serves.
    """

    ways: Callable[[Problem, cuda_plan.Device], tuple[dict[str, float], str]]
    training: Callable[[Problem, cuda_plan.Device], float | None]
    most_live: int
    arithmetic: tuple[str, ...]


#: Backends that are estimated by their own library, not by ``_WAYS``. Where no kernels are named it
#: decides by itself, with the GPU at hand, and ``fused`` it takes for "where one kernel can run".
PLANNERS = {
    "cuda": Planner(
        cuda_plan.ways, cuda_plan.training_seconds, cuda_plan.MOST_LIVE, ("bfloat16", "float16")
    )
}


def estimates(
    problem: Problem, training: bool, gpu: Gpu, arithmetic: str
) -> dict[tuple[str, str], float]:
    """Seconds of each (backend, kernels) that the model covers; empty for float64.

    ``arithmetic`` is a key of :attr:`Gpu.flops`: the dtype, or ``tf32``.
    """
    rate = gpu.flops.get(arithmetic)
    if rate is None:
        return {}
    found: dict[tuple[str, str], float] = {}
    for backend, planner in PLANNERS.items():
        if arithmetic not in planner.arithmetic:
            continue
        if training:
            step = planner.training(problem, gpu.planned)
            found |= {} if step is None else {(backend, ""): step}
        else:
            planned, _ = planner.ways(problem, gpu.planned)
            found |= {(backend, kernels): seconds for kernels, seconds in planned.items()}
    cost = problem_cost(problem)
    modelled = {
        way: sum(
            max(kernel.flops / (rate * kernel.share), kernel.traffic / gpu.bytes_per_second)
            for kernel in kernels(problem, cost, gpu)
        )
        for way, kernels in _WAYS[training].items()
    }
    return found | modelled
