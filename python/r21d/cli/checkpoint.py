"""A network ready to use, from weights alone."""

from __future__ import annotations

import argparse
import os

from r21d.cli.errors import UserError
from r21d.models import VideoModel


def add_weights(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """``--weights``; a checkpoint of one's own reads better as ``--checkpoint``.

    ``several`` takes a list, one checkpoint for each split of a data set.
    """
    parser.add_argument(
        "--weights",
        "--checkpoint",
        dest="weights",
        required=True,
        nargs="+" if several else None,
        metavar="FILE|URL|NAME",
        help="a checkpoint of r21d train, a published file of torchvision, ig65m, VMZ, mmaction2 "
        "or I3D, its URL, or a name that r21d info --weights lists"
        + ("; one for all splits, or one for each" if several else ""),
    )


def load_model(source: str | os.PathLike[str], device: str = "cpu") -> VideoModel:
    """The network of a file, a URL or a registry name, in eval mode, with classes and input.

    Raises:
        CheckpointError: the file is missing, damaged or of no known layout.
        UserError: the network does not take video frames.
    """
    from r21d import weights

    model = weights.load_model(source)
    if model.config["in_channels"] != 3:
        raise UserError(
            f"{source} is a network of {model.config['in_channels']} input channels (optical "
            "flow), and flow is not made from video files yet"
        )
    return model.to(device)
