"""What the paper and VMZ's scripts say, word for word, about each value of the configurations.

Copied by hand from the paper (arXiv:1711.11248) and from VMZ at commit 4cc542d, whose file the
source names; ``ours`` is a choice of this library, with its reason.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Quote(NamedTuple):
    """A value, where it is from, and the words that say so."""

    value: Any
    source: str
    quote: str


_TRAIN_NET = "VMZ: c2/tools/train_net.py"
_KINETICS_SCRIPT = "VMZ: c2/scripts/train_r2plus1d_kinetics.sh"
_HMDB51_SCRIPT = "VMZ: c2/scripts/finetune_hmdb51.sh"
_UCF101_SCRIPT = "VMZ: c2/scripts/finetune_ucf101.sh"
_SETUP = "paper, section 4.1"
_LENGTHS = "paper, section 4.3"
_DEEP = "paper, section 4.4"

Quotes = dict[str, Quote]

# Section 4.1, and what VMZ's script adds.
KINETICS: Quotes = {
    "model": Quote("r2plus1d_18", "paper, Table 2", "All models use a ResNet of 18 layers"),
    "midplanes": Quote(
        "paper",
        "paper, section 3.5",
        r"We choose $M_i = \lfloor \frac{td^2N_{i-1}N_i}{d^2N_{i-1}+tN_i} \rfloor$",
    ),
    "eps": Quote(0.001, "VMZ: c2/lib/models/r3d_model.py", "epsilon=1e-3"),
    "dropout": Quote(0.0, _TRAIN_NET, 'parser.add_argument("--use_dropout", type=int, default=0,'),
    "clip_len": Quote(8, _SETUP, "sisting of L = 8 RGB frames as input"),
    "frame_rate": Quote(
        30.0, "VMZ: c2/tutorials/kinetics_train.md", "we enforce the frame rate to 30 fps"
    ),
    "frame_stride": Quote(
        1, _TRAIN_NET, 'parser.add_argument("--sampling_rate_rgb", type=int, default=1,'
    ),
    "resize": Quote((128, 171), _SETUP, "Video frames are scaled to size 128×171"),
    "crop": Quote((112, 112), _SETUP, "randomly cropping windows of size 112×112"),
    "flip": Quote(True, _TRAIN_NET, "random_mirror=True,"),
    "dataset": Quote(
        "kinetics", "paper, section 4", "We use Kinetics [4] and Sports-1M [14] as the primary"
    ),
    "val_clips": Quote(10, _SETUP, "we use center crops of 10 clips randomly sam"),
    "val_sampling": Quote("random", _SETUP, "we use center crops of 10 clips randomly sam"),
    "epochs": Quote(45, _SETUP, "Training is done for 45 epochs."),
    "epoch_clips": Quote(1_000_000, _KINETICS_SCRIPT, "--epoch_size=1000000"),
    "batch_size": Quote(32, _SETUP, "We use a mini-batch size of 32 clips."),
    "lr": Quote(0.01, _SETUP, "The initial learning rate is set to 0.01"),
    "lr_batch": Quote(32, _TRAIN_NET, "base_lr=args.base_learning_rate * num_gpus,"),
    "schedule": Quote("step", _SETUP, "divided by 10 every 10 epochs"),
    "lr_step": Quote(10, _SETUP, "divided by 10 every 10 epochs"),
    "lr_gamma": Quote(0.1, _SETUP, "divided by 10 every 10 epochs"),
    "warmup_epochs": Quote(0.0, _TRAIN_NET, 'policy="step",'),
    "momentum": Quote(0.9, _TRAIN_NET, "momentum=0.9,"),
    "nesterov": Quote(True, _TRAIN_NET, "nesterov=1,"),
    "weight_decay": Quote(1e-4, _KINETICS_SCRIPT, "--weight_decay=0.0001"),
    "sync_bn": Quote(False, "ours", "neither says; Caffe2's SpatialBN has it off"),
}


def _network(model: str, printed: str) -> Quotes:
    """A row of Table 2."""
    return KINETICS | {"model": Quote(model, f"paper, Table 2: {printed},", f"{printed}\t")}


def _frames(clip_len: int) -> Quotes:
    """A point of Figure 5."""
    lengths = "We train separate models for input clip lengths of 8, 16, 24, 32, 40, and 48 frames."
    spaced = "obtained for 10 clips evenly spaced in the video"
    return KINETICS | {
        "clip_len": Quote(clip_len, _LENGTHS, lengths),
        "val_sampling": Quote("even", _LENGTHS, spaced),
    }


_OF_WEIGHTS: Quotes = {
    "midplanes": Quote(None, "ours", "the weights decide"),
    "eps": Quote(None, "ours", "the weights decide"),
}

_LONGER = (
    _frames(32)
    | _OF_WEIGHTS
    | {
        "weights": Quote(
            "r2plus1d_18/kinetics400_vmz_8f",
            _LENGTHS,
            "we finetuned the 32-frame model using as initialization the parameters of the 8-frame",
        ),
        "epochs": Quote(15, "ours", "section 4.3 gives none; these are section 4.4's"),
        "lr": Quote(0.001, "ours", "section 4.3 gives none; these are section 4.4's"),
        "lr_step": Quote(4, "ours", "section 4.3 gives none; these are section 4.4's"),
    }
)

_KINETICS_34_8 = KINETICS | {
    "model": Quote("r2plus1d_34", _DEEP, "results using a 34-layer version of R(2+1)D"),
}
_KINETICS_34_32 = _KINETICS_34_8 | {
    "clip_len": Quote(32, "VMZ: c2/tutorials/models.md", "R2.5D-34 | 32x112x112 | RGB | Kinetics"),
}

# What section 4.4 does not say of Sports-1M, and no script of VMZ trains there.
_AS_ON_KINETICS = "ours: as on Kinetics"
_CROP = Quote((112, 112), _TRAIN_NET, 'parser.add_argument("--crop_size", type=int, default=112,')
_SPORTS_RATE = (
    "The initial learning rate is set to 0.01 and is divided by 10 after every 10 epochs."
)

_SPORTS_8 = _KINETICS_34_8 | {
    "clip_len": Quote(8, _DEEP, "on Sports-1M with both 8-frame and 32-frame clip inputs"),
    "frame_rate": Quote(30.0, _AS_ON_KINETICS, "nothing is said of Sports-1M"),
    "resize": Quote((128, 171), _AS_ON_KINETICS, "nothing is said of Sports-1M"),
    "crop": _CROP,
    "epoch_clips": Quote(1_000_000, _AS_ON_KINETICS, "nothing is said of Sports-1M"),
    "weight_decay": Quote(1e-4, _AS_ON_KINETICS, "nothing is said of Sports-1M"),
    "lr": Quote(0.01, _DEEP, _SPORTS_RATE),
    "schedule": Quote("step", _DEEP, _SPORTS_RATE),
    "lr_step": Quote(10, _DEEP, _SPORTS_RATE),
    "lr_gamma": Quote(0.1, _DEEP, _SPORTS_RATE),
    "dataset": Quote("sports1m", _DEEP, "We train R(2+1)D-34 on Sports-1M"),
    "val_clips": Quote(100, _DEEP, "predictions (using center crop only) from these 100 random"),
    "val_sampling": Quote(
        "random", _DEEP, "predictions (using center crop only) from these 100 random clips"
    ),
    "epochs": Quote(50, _DEEP, "Training is completed after 50 epochs."),
    "batch_size": Quote(30, _DEEP, "with mini-batches of 30 clips"),
    "lr_batch": Quote(30, "ours", "VMZ's scaling from the paper's batch on"),
    "validate_epochs": Quote(50, "ours", "100 clips a video take long"),
}
_SPORTS_32 = _SPORTS_8 | {
    "clip_len": Quote(32, _DEEP, "on Sports-1M with both 8-frame and 32-frame clip inputs"),
}

_SPORTS_TO_KINETICS = (
    _KINETICS_34_32
    | _OF_WEIGHTS
    | {
        "weights": Quote(
            "runs/sports1m_r2plus1d_34_32f", _DEEP, "finetuning the model pretrained on Sports-1M"
        ),
        "epochs": Quote(15, _DEEP, "Finetuning is completed at 15 epochs."),
        "lr": Quote(0.001, _DEEP, "we use a base learning rate of 0.001"),
        "lr_step": Quote(4, _DEEP, "then divide it by 10 every 4"),
    }
)

_SPLITS = "Both UCF101 and HMDB51 are provided with 3 splits"
_TO_HMDB51 = (
    _KINETICS_34_32
    | _OF_WEIGHTS
    | {
        "weights": Quote(
            "r2plus1d_34/kinetics400_vmz_32f", _HMDB51_SCRIPT, "kinetics/l32/r2.5d_d34_l32.pkl"
        ),
        "frame_rate": Quote(
            None, "VMZ: c2/scripts/create_hmdb51_lmdb.sh", "data/list/hmdb51/hmdb51_train_01.csv"
        ),
        "clip_len": Quote(32, _HMDB51_SCRIPT, "--clip_length_rgb=32"),
        "resize": Quote((128, 171), _AS_ON_KINETICS, "VMZ scales by the shorter side"),
        "crop": _CROP,
        "val_clips": Quote(10, _AS_ON_KINETICS, "VMZ's are dense"),
        "val_sampling": Quote("random", _AS_ON_KINETICS, "VMZ's are dense"),
        "dataset": Quote("hmdb51", _DEEP, _SPLITS),
        "epochs": Quote(8, _HMDB51_SCRIPT, "--num_epochs=8"),
        "epoch_clips": Quote(40_000, _HMDB51_SCRIPT, "--epoch_size=40000"),
        "batch_size": Quote(4, _HMDB51_SCRIPT, "--batch_size=4"),
        "accumulate": Quote(8, _HMDB51_SCRIPT, "--gpus=0,1,2,3,4,5,6,7"),
        "lr": Quote(2e-4, _HMDB51_SCRIPT, "--base_learning_rate=0.0002"),
        "lr_batch": Quote(4, _TRAIN_NET, "base_lr=args.base_learning_rate * num_gpus,"),
        "schedule": Quote("step", _TRAIN_NET, 'policy="step",'),
        "lr_step": Quote(2, _HMDB51_SCRIPT, "--step_epoch=2"),
        "lr_gamma": Quote(
            0.1, _TRAIN_NET, 'parser.add_argument("--gamma", type=float, default=0.1,'
        ),
        "weight_decay": Quote(0.005, _HMDB51_SCRIPT, "--weight_decay=0.005"),
    }
)
_TO_UCF101 = _TO_HMDB51 | {
    "weights": Quote(
        "r2plus1d_34/kinetics400_vmz_32f", _UCF101_SCRIPT, "kinetics/l32/r2.5d_d34_l32.pkl"
    ),
    "clip_len": Quote(32, _UCF101_SCRIPT, "--clip_length_rgb=32"),
    "frame_rate": Quote(
        None, "VMZ: c2/scripts/create_ucf101_lmdb.sh", "data/list/ucf10/ucf101_train_01.csv"
    ),
    "dataset": Quote("ucf101", _DEEP, _SPLITS),
    "epochs": Quote(8, _UCF101_SCRIPT, "--num_epochs=8"),
    "epoch_clips": Quote(100_000, _UCF101_SCRIPT, "--epoch_size=100000"),
    "batch_size": Quote(4, _UCF101_SCRIPT, "--batch_size=4"),
    "accumulate": Quote(8, _UCF101_SCRIPT, "--gpus=0,1,2,3,4,5,6,7"),
    "lr": Quote(1e-4, _UCF101_SCRIPT, "--base_learning_rate=0.0001"),
    "lr_step": Quote(2, _UCF101_SCRIPT, "--step_epoch=2"),
    "weight_decay": Quote(0.005, _UCF101_SCRIPT, "--weight_decay=0.005"),
}
_FROM_SPORTS = {
    "weights": Quote(
        "runs/sports1m_r2plus1d_34_32f", _DEEP, "using models pretrained on Sports-1M and Kinetics"
    )
}

QUOTED: dict[str, Quotes] = {
    "kinetics_r2d_18_8f": _network("r2d_18", "R2D"),
    "kinetics_fr2d_18_8f": _network("fr2d_18", "f-R2D"),
    "kinetics_r3d_18_8f": _network("r3d_18", "R3D"),
    "kinetics_mc2_18_8f": _network("mc2_18", "MC2"),
    "kinetics_mc3_18_8f": _network("mc3_18", "MC3"),
    "kinetics_mc4_18_8f": _network("mc4_18", "MC4"),
    "kinetics_mc5_18_8f": _network("mc5_18", "MC5"),
    "kinetics_rmc2_18_8f": _network("rmc2_18", "rMC2"),
    "kinetics_rmc3_18_8f": _network("rmc3_18", "rMC3"),
    "kinetics_rmc4_18_8f": _network("rmc4_18", "rMC4"),
    "kinetics_rmc5_18_8f": _network("rmc5_18", "rMC5"),
    "kinetics_r2plus1d_18_8f": KINETICS,
    "kinetics_r2plus1d_18_16f": _frames(16),
    "kinetics_r2plus1d_18_24f": _frames(24),
    "kinetics_r2plus1d_18_32f": _frames(32),
    "kinetics_r2plus1d_18_40f": _frames(40),
    "kinetics_r2plus1d_18_48f": _frames(48),
    "kinetics_r2plus1d_18_8f_to_32f": _LONGER,
    "kinetics_r2plus1d_34_8f": _KINETICS_34_8,
    "kinetics_r2plus1d_34_32f": _KINETICS_34_32,
    "sports1m_r2plus1d_34_8f": _SPORTS_8,
    "sports1m_r2plus1d_34_32f": _SPORTS_32,
    "sports1m_to_kinetics": _SPORTS_TO_KINETICS,
    "kinetics_to_hmdb51": _TO_HMDB51,
    "kinetics_to_ucf101": _TO_UCF101,
    "sports1m_to_hmdb51": _TO_HMDB51 | _FROM_SPORTS,
    "sports1m_to_ucf101": _TO_UCF101 | _FROM_SPORTS,
}
"""By configuration and key; the studies of this library's own have none."""
