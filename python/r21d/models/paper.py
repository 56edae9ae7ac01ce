"""What the paper prints about its networks, and what counting them here gives.

The paper is D. Tran et al., "A Closer Look at Spatiotemporal Convolutions for Action Recognition"
(arXiv:1711.11248).  VMZ is github.com/facebookresearch/VMZ, the authors' own code, whose
``c2/tutorials/models.md`` lists the same twelve networks trained again; their accuracies stand in
:mod:`r21d.weights.catalogue`.  Nothing here needs weights, videos or a GPU: what the paper says of
accuracy is compared with its own table alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from r21d.models.info import ModelInfo, model_info
from r21d.models.registry import KINDS, create_model

CLIP_LENS = (8, 16, 32)
"""Frames a clip at which networks are counted; the paper's Table 2 and Figure 3 have 8."""

_GROUPS = ("stem", "layer1", "layer2", "layer3", "layer4")
_PLACES = ("1", "3.5", "Table 1", "4.1", "4.2", "Fig. 3", "4.3", "4.4", "appendix")


@dataclass(frozen=True)
class Row:
    """A network's row in Table 2: Kinetics-400, clips of 3x8x112x112.

    Attributes:
        parameters: millions, as printed.
        clip_top1: accuracy of a clip in percent.
        video_top1: accuracy of a video in percent, the scores of 10 clips averaged.
    """

    parameters: str
    clip_top1: float
    video_top1: float


TABLE_2 = {
    "r2d": Row("11.4", 45.4, 57.5),
    "fr2d": Row("11.4", 46.8, 58.0),
    "r3d": Row("33.4", 49.3, 61.2),
    "mc2": Row("11.4", 49.2, 60.6),
    "mc3": Row("11.7", 50.4, 62.2),
    "mc4": Row("12.7", 49.6, 61.3),
    "mc5": Row("16.9", 49.4, 61.3),
    "rmc2": Row("33.3", 49.0, 60.8),
    "rmc3": Row("33.0", 48.9, 60.6),
    "rmc4": Row("32.0", 49.2, 60.7),
    "rmc5": Row("27.9", 48.5, 60.5),
    "r2plus1d": Row("33.3", 52.4, 63.9),
}
"""The paper's Table 2 by family: 18 layers, 8 frames."""

VMZ_GMACS = {
    8: {
        "r2d": "1.9",
        "fr2d": "13.8",
        "r3d": "20.3",
        "mc2": "14.3",
        "mc3": "21.7",
        "mc4": "20",
        "mc5": "20",
        "rmc2": "19.9",
        "rmc3": "12.5",
        "rmc4": "14.5",
        "rmc5": "15.4",
        "r2plus1d": "20.7",
    },
    16: {
        "r2d": "2.2",
        "fr2d": "27.6",
        "r3d": "40.7",
        "mc2": "28.5",
        "mc3": "43.3",
        "mc4": "40",
        "mc5": "39.9",
        "rmc2": "39.8",
        "rmc3": "25",
        "rmc4": "29.1",
        "rmc5": "30.8",
        "r2plus1d": "41.5",
    },
}
"""GFLOPs as VMZ prints them, by clip length and family: 18 layers, clips of 3xLx112x112."""


@dataclass(frozen=True)
class Network:
    """A network as counted here, with 400 classes.

    Attributes:
        name: what :func:`r21d.create_model` calls it.
        infos: by frames a clip; R2D is built anew for each number of frames.
        relus: its ``nn.ReLU`` modules, those inside (2+1)D convolutions included.
    """

    name: str
    infos: dict[int, ModelInfo]
    relus: int


@dataclass(frozen=True)
class Claim:
    """A statement of the paper that counting or its own Table 2 can check.

    Attributes:
        where: section, table or figure.
        says: what it says, in short.
        found: what counting, or subtraction in Table 2, gives.
        holds: whether the two agree at the precision at which the paper prints.
    """

    where: str
    says: str
    found: str
    holds: bool


def count_network(name: str, clip_lens: Iterable[int] = CLIP_LENS, size: int = 112) -> Network:
    """Count the network ``name`` at 3xLx``size``x``size`` for each L of ``clip_lens``.

    Raises:
        ValueError: an unknown name, or a clip that the network does not take.
    """
    infos: dict[int, ModelInfo] = {}
    relus = 0
    for clip_len in clip_lens:
        # Meta tensors: counting needs no weights.
        with torch.device("meta"):
            model = create_model(name, clip_len=clip_len)
        infos[clip_len] = model_info(model, (3, clip_len, size, size))
        relus = sum(isinstance(module, nn.ReLU) for module in model.modules())
    return Network(name, infos, relus)


def count_networks() -> dict[str, Network]:
    """Every network by name: 18 layers and I3D at :data:`CLIP_LENS`, 34 layers at 8 frames.

    ``r2plus1d_34`` is counted at 32 frames as well, the paper's in section 4.4.
    """
    networks = {}
    for family in KINDS:
        networks[f"{family}_18"] = count_network(f"{family}_18")
        deep = (8, 32) if family == "r2plus1d" else (8,)
        networks[f"{family}_34"] = count_network(f"{family}_34", deep)
    return {**networks, "i3d": count_network("i3d")}


def vmz_accuracy(family: str, clip_len: int) -> tuple[float, float]:
    """VMZ's clip@1 and video@1 (10 clips) in percent on Kinetics-400, 18 layers.

    Raises:
        ValueError: VMZ has no such network, or not for ``clip_len`` frames.
    """
    from r21d.weights.registry import published

    metrics = published(f"kinetics400_vmz_{clip_len}f", f"{family}_18").metrics
    return metrics["clip@1"], metrics["video@1"]


def printed_as(value: float, printed: str) -> str:
    """How ``printed`` shows ``value``: ``"rounded"``, ``"cut"`` (rounded down) or ``"differs"``."""
    decimals = len(printed.partition(".")[2])
    if f"{value:.{decimals}f}" == printed:
        return "rounded"
    cut = math.floor(value * 10**decimals) / 10**decimals
    return "cut" if f"{cut:.{decimals}f}" == printed else "differs"


def check_claims(networks: Mapping[str, Network]) -> list[Claim]:
    """The paper's statements on sizes, costs and gains, in its order, each beside what is so.

    Args:
        networks: what :func:`count_networks` gives.
    """
    claims = [*_structure(networks), *_costs(networks), *_gains()]
    return sorted(claims, key=lambda claim: _PLACES.index(claim.where))


def _structure(networks: Mapping[str, Network]) -> list[Claim]:
    r3d, r2plus1d = networks["r3d_18"], networks["r2plus1d_18"]
    table_1 = [_group_sizes(networks[name].infos[8]) for name in ("r3d_18", "r3d_34")]
    printed = ["8x56x56", "8x56x56", "4x28x28", "2x14x14", "1x7x7"]
    millions = [network.infos[8].parameters / 1e6 for network in (r2plus1d, r3d)]
    conv1 = [_stem_parameters(network.infos[8]) for network in (r2plus1d, r3d)]
    last = [_sizes(networks[f"{f}_18"].infos[8].last_conv) for f in ("fr2d", "r3d", "r2plus1d")]
    parts = sum(".downsample." not in row.name for row in networks["r2plus1d_34"].infos[8].layers)
    return [
        Claim(
            "Table 1",
            "outputs " + " ".join(printed),
            " or ".join(dict.fromkeys(map(" ".join, table_1))),
            table_1 == [printed] * 2,
        ),
        Claim(
            "3.5",
            "R(2+1)D has the parameters of R3D",
            f"{millions[0]:.2f} against {millions[1]:.2f} million",
            f"{millions[0]:.1f}" == f"{millions[1]:.1f}",
        ),
        Claim(
            "3.5",
            "R(2+1)D doubles the nonlinearities",
            f"{r2plus1d.relus} against {r3d.relus} ReLUs",
            r2plus1d.relus == 2 * r3d.relus,
        ),
        Claim(
            "4.1",
            "last conv: f-R2D 8x7x7, R3D and R(2+1)D 1x7x7",
            " ".join(last),
            last == ["8x7x7", "1x7x7", "1x7x7"],
        ),
        Claim(
            "4.4",
            "R(2+1)D-34 has 68 layers if its parts count",
            f"{parts}: {parts - 1} convolutions and fc",
            parts == 68,
        ),
        Claim(
            "appendix",
            "conv1 of R(2+1)D has the parameters of R3D's",
            f"{conv1[0]:,} against {conv1[1]:,}",
            conv1[0] == conv1[1],
        ),
    ]


def _costs(networks: Mapping[str, Network]) -> list[Claim]:
    gmacs = {family: networks[f"{family}_18"].infos[8].gmacs for family in KINDS}
    frames = _frames(networks["rmc2_18"].infos[8], "layer2")
    ratio = gmacs["r2plus1d"] / gmacs["r3d"]
    long = networks["r2plus1d_18"].infos[32].gmacs / gmacs["r2plus1d"]
    deep = networks["r2plus1d_34"].infos[32].gmacs / gmacs["r2plus1d"]
    worst = {
        min(TABLE_2, key=lambda family: TABLE_2[family].clip_top1),
        min(TABLE_2, key=lambda family: TABLE_2[family].video_top1),
    }
    after = sorted(set(KINDS["rmc3"][2:]))
    return [
        Claim(
            "4.2",
            "R2D is the cheapest and the least accurate",
            f"{gmacs['r2d']:.2f} GMAC, {TABLE_2['r2d'].video_top1} % of videos",
            worst | {min(gmacs, key=gmacs.__getitem__)} == {"r2d"},
        ),
        Claim(
            "4.2",
            "rMC3 costs less than f-R2D",
            f"{gmacs['rmc3']:.2f} against {gmacs['fr2d']:.2f} GMAC",
            gmacs["rmc3"] < gmacs["fr2d"],
        ),
        Claim(
            "4.2",
            "because its 2-D layers after conv3_1 are smaller",
            f"conv3_x to conv5_x of rMC3 are {' and '.join(after)}",
            "2d" in after,
        ),
        Claim(
            "4.2",
            "rMC2 costs more than rMC3",
            f"{gmacs['rmc2']:.2f} against {gmacs['rmc3']:.2f} GMAC",
            gmacs["rmc2"] > gmacs["rmc3"],
        ),
        Claim(
            "4.2",
            "because rMC2 does not stride in time in group 3",
            f"conv3_1 leaves {frames} of 8 frames; group 2 is {KINDS['rmc2'][1]}",
            frames == 8,
        ),
        Claim(
            "4.2",
            "R(2+1)D costs about as much as R3D",
            f"{gmacs['r2plus1d']:.2f} against {gmacs['r3d']:.2f} GMAC, {ratio:.2f} times",
            f"{ratio:.1f}" == "1.0",
        ),
        Claim(
            "4.3",
            "8 frames are 7.3 times cheaper than 32",
            f"{long:.2f} times; {deep:.2f} is 34 layers at 32 to 18 at 8",
            f"{long:.1f}" == "7.3",
        ),
    ]


def _gains() -> list[Claim]:
    clip = {family: row.clip_top1 for family, row in TABLE_2.items()}
    video = {family: row.video_top1 for family, row in TABLE_2.items()}
    mixed = [f"mc{x}" for x in range(2, 6)]
    reversed_ = [f"rmc{x}" for x in range(2, 6)]
    mean = sum(clip[family] for family in mixed) / len(mixed)
    shares = [float(TABLE_2["r3d"].parameters) / float(TABLE_2[f].parameters) for f in mixed]
    temporal = [clip[family] for family in ("r3d", *mixed, *reversed_)]
    gaps = _span(a - b for a in temporal for b in (clip["r2d"], clip["fr2d"]))
    lead = _span(clip["r2plus1d"] - clip[family] for family in ("r3d", *mixed))
    flat = _span(clip["r2plus1d"] - clip[family] for family in ("r2d", "fr2d"))
    pairs = [(f"mc{x}", f"rmc{x}") for x in range(2, 6)]
    by_clip = _span(clip[a] - clip[b] for a, b in pairs)
    by_video = _span(video[a] - video[b] for a, b in pairs)
    over_r3d = [f"{t['r2plus1d'] - t['r3d']:.1f}" for t in (clip, video)]
    return [
        Claim(
            "1",
            "MCx gains roughly 3-4 points on 2-D networks",
            f"mean {mean - clip['fr2d']:.2f} on f-R2D, {mean - clip['r2d']:.2f} on R2D (clip@1)",
            [round(mean - clip[family]) for family in ("fr2d", "r2d")] == [3, 4],
        ),
        Claim(
            "1",
            "R3D has 3 times the parameters of MCx",
            ", ".join(f"{share:.1f}" for share in shares) + " times (MC2 to MC5)",
            all(round(share) == 3 for share in shares),
        ),
        Claim(
            "4.2",
            "R3D, MCx, rMCx lead 2-D networks by 1.7-5",
            f"{gaps[0]} to {gaps[1]} (clip@1)",
            gaps == (1.7, 5.0),
        ),
        Claim(
            "4.2",
            "R(2+1)D leads MC2-MC5 and R3D by 2-3.9",
            f"{lead[0]} to {lead[1]}; {clip['r2plus1d'] - clip['rmc5']:.1f} is over rMC5 (clip@1)",
            lead == (2.0, 3.9),
        ),
        Claim(
            "4.2",
            "R(2+1)D leads 2-D networks by 5.6-7",
            f"{flat[0]} to {flat[1]} (clip@1)",
            flat == (5.6, 7.0),
        ),
        Claim(
            "4.2",
            "MCx is slightly better than rMCx",
            f"{by_clip[0]:+} to {by_clip[1]:+} clip@1, {by_video[0]:+} to {by_video[1]:+} video@1",
            # Section 4.2 compares clips; by videos MC2 is behind rMC2.
            by_clip[0] > 0,
        ),
        Claim(
            "Fig. 3",
            "R(2+1)D gains 2.8 points on R3D",
            f"{over_r3d[0]} (clip@1), {over_r3d[1]} (video@1)",
            "2.8" in over_r3d,
        ),
    ]


def _span(values: Iterable[float]) -> tuple[float, float]:
    """Smallest and largest, at the one decimal of Table 2."""
    rounded = sorted(round(value, 1) for value in values)
    return rounded[0], rounded[-1]


def _group_sizes(info: ModelInfo) -> list[str]:
    """Output sizes of conv1 to conv5_x."""
    return [
        _sizes(next(row.output[1:] for row in reversed(info.layers) if _is_in(row.name, group)))
        for group in _GROUPS
    ]


def _frames(info: ModelInfo, group: str) -> int:
    return next(row.output[1] for row in info.layers if _is_in(row.name, group))


def _stem_parameters(info: ModelInfo) -> int:
    """Weights of conv1's convolutions; BatchNorm has no row."""
    return sum(row.parameters for row in info.layers if _is_in(row.name, "stem"))


def _is_in(name: str, group: str) -> bool:
    return name.startswith(f"{group}.")


def _sizes(sizes: Iterable[int]) -> str:
    return "x".join(map(str, sizes))
