"""The settings of a run as data: network, input, videos and optimisation, by table and key.

The keys are the fields of the tables' classes, and so are the options of ``r21d train``.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from r21d.training.config import TrainConfig, require
from r21d.video.resize import FrameSize
from r21d.video.transforms import InputSpec

NONE = "none"
"""How a file and the command line spell None."""
NATIVE = "native"
"""How they spell it for ``frame_rate``: the video's own."""
DEFAULT_SOURCE = "default"
COMMAND_LINE = "command line"
_MIDPLANES = "paper, torchvision or none"


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network. None leaves a choice to the weights, or to :func:`r21d.create_model`.

    Raises:
        ValueError: an unknown network, or a value out of range; the message names it.
    """

    model: str = "r2plus1d_18"
    """A name of :func:`r21d.list_models`."""
    weights: str | None = None
    """What to start from: a name of :func:`r21d.list_weights`, a file, a URL or a run's folder."""
    midplanes: str | None = None
    """``"paper"`` or ``"torchvision"``."""
    width: int | None = None
    """Channels of conv1 and conv2_x, doubled in each later group; 64 is the paper's (Table 1)."""
    dropout: float | None = None
    """Probability of dropping a feature before the classifier."""
    eps: float | None = None
    """Of every BatchNorm; 1e-5 where neither this nor the weights say."""
    fused: bool = True
    """Run (2+1)D convolutions by r21d_ops; False: as the stock layers they consist of."""
    recompute: bool = False
    """Make the convolutions' intermediates again in backward, to keep less memory."""

    def __post_init__(self) -> None:
        from r21d.models.registry import check_name

        try:
            check_name(self.model)
        except ValueError as error:
            raise ValueError(str(error).replace("name=", "model=", 1)) from error
        require(self, "midplanes", self.midplanes in (None, "paper", "torchvision"), _MIDPLANES)
        require(self, "width", self.width is None or self.width >= 1, "at least 1")
        require(self, "width", self.width is None or self.model != "i3d", "none for i3d")
        stock = "with fused: stock layers keep what they make"
        require(self, "recompute", self.fused or not self.recompute, stock)
        for name in ("dropout", "eps"):
            value = getattr(self, name)
            require(self, name, value is None or 0 <= value < 1, "at least 0 and below 1")

    def options(self) -> dict[str, Any]:
        """What is given, as arguments of :func:`r21d.create_model`."""
        given = {name: getattr(self, name) for name in ("midplanes", "dropout", "eps")}
        if self.width is not None:
            widths = [self.width * factor for factor in (1, 2, 4, 8)]
            given |= {"widths": widths, "stem_channels": self.width}
        return {name: value for name, value in given.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class InputConfig:
    """The clips; see :class:`r21d.video.InputSpec`.

    Raises:
        ValueError: a value out of range.
    """

    clip_len: int = 16
    frame_rate: float | None = 15.0
    frame_stride: int = 1
    resize: FrameSize = (128, 171)
    crop: tuple[int, int] = (112, 112)
    short: str = "pad"
    flip: bool = True
    """Mirror half of the training clips."""

    def __post_init__(self) -> None:
        self.spec()

    def spec(self, normalisation: Mapping[str, Any] | None = None) -> InputSpec:
        """The specification, with the mean, std and antialias of ``normalisation`` if given."""
        values = dataclasses.asdict(self)
        del values["flip"]
        return InputSpec(**values, **(normalisation or {}))


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The videos: what they are, and how validation looks at them.

    Raises:
        ValueError: a value out of range.
    """

    dataset: str = "folder"
    """One of :data:`r21d.video.lists.DATASETS`."""
    val_clips: int = 5
    """Clips a validation video."""
    val_sampling: str = "even"
    """``"even"``, ``"random"`` or ``"dense"``, see :class:`r21d.video.ClipSampling`."""
    val_fraction: float | None = None
    """Share of each class's training videos to hold out; None: where nothing else is there."""

    def __post_init__(self) -> None:
        from r21d.video.clips import MODES
        from r21d.video.lists import DATASETS

        require(self, "dataset", self.dataset in DATASETS, f"one of {', '.join(DATASETS)}")
        require(self, "val_clips", self.val_clips >= 1, "at least 1")
        require(self, "val_sampling", self.val_sampling in MODES, f"one of {', '.join(MODES)}")
        share = self.val_fraction
        require(self, "val_fraction", share is None or 0 < share < 1, "above 0 and below 1")


@dataclasses.dataclass(frozen=True)
class RunPaths:
    """Where a run finds its videos: of this machine, so in no configuration of the library."""

    data: str | None = None
    annotations: str | None = None
    split: str | None = None
    val: str | None = None
    index: str | None = None
    strict: bool = False


TABLES: dict[str, type[Any]] = {
    "model": ModelConfig,
    "input": InputConfig,
    "data": DataConfig,
    "train": TrainConfig,
    "run": RunPaths,
}


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """All settings of a run, by table. Keys are unique over the tables."""

    model: ModelConfig
    input: InputConfig
    data: DataConfig
    train: TrainConfig
    run: RunPaths = dataclasses.field(default_factory=RunPaths)
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)
    """Where each value comes from, by key: a file's own words, or `COMMAND_LINE`; keys that have
    their default are absent."""

    def changed(self, values: Mapping[str, Any], source: str) -> RunConfig:
        """The same with other ``values``, by key, which come from ``source``.

        Raises:
            ValueError: a value out of range.
        """
        tables = {
            table: dataclasses.replace(
                getattr(self, table), **{k: v for k, v in values.items() if KEYS[k].table == table}
            )
            for table in TABLES
        }
        return RunConfig(**tables, sources={**self.sources, **dict.fromkeys(values, source)})

    def values(self) -> dict[str, Any]:
        """Every value by its key, ``[run]`` left out: what decides a run beside its videos."""
        return {
            key.name: getattr(getattr(self, key.table), key.name)
            for key in KEYS.values()
            if key.table != "run"
        }


@dataclasses.dataclass(frozen=True)
class Key:
    """A setting: its name, table, type (None aside), whether it may be None, and its default."""

    name: str
    table: str
    kind: Any
    optional: bool
    default: Any


def _keys() -> dict[str, Key]:
    keys: dict[str, Key] = {}
    for table, cls in TABLES.items():
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            kind, optional = _without_none(hints[field.name])
            default = getattr(cls(), field.name)
            keys[field.name] = Key(field.name, table, kind, optional, default)
    return keys


def _without_none(hint: Any) -> tuple[Any, bool]:
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint, False
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    return (kinds[0] if len(kinds) == 1 else hint), len(kinds) < len(typing.get_args(hint))


def checked(key: Key, value: Any) -> Any:
    """A file's ``value`` of ``key`` as the setting itself.

    Raises:
        ValueError: it is of another type.
    """
    if key.optional and value in (NONE, *([NATIVE] if key.name == "frame_rate" else [])):
        return None
    expected, valid = _KINDS[key.kind]
    if not valid(value):
        none = f" or {none_of(key)!r}" if key.optional else ""
        raise ValueError(f"{key.name} is {value!r}, expected {expected}{none}")
    if isinstance(value, list):
        return tuple(value)
    return float(value) if key.kind is float else value


def none_of(key: Key) -> str:
    """How None is spelled for ``key``."""
    return NATIVE if key.name == "frame_rate" else NONE


def _is_number(value: Any) -> bool:
    # A whole number may be too large for a float.
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) < 1e300 and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_whole, value))


_KINDS: dict[Any, tuple[str, Any]] = {
    bool: ("true or false", lambda value: isinstance(value, bool)),
    int: ("a whole number", _is_whole),
    float: ("a finite number", _is_number),
    str: ("text", lambda value: isinstance(value, str)),
    tuple[int, int]: ("[height, width]", _is_size),
    FrameSize: (
        "[height, width] or the length of the shorter side",
        lambda value: _is_size(value) or _is_whole(value),
    ),
    dict[str, float]: (
        "a table of numbers",
        lambda value: isinstance(value, dict) and all(map(_is_number, value.values())),
    ),
}


KEYS: dict[str, Key] = _keys()
"""Every setting by its name."""
