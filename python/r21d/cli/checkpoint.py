"""A network ready to use, from a checkpoint alone."""

from __future__ import annotations

import os

from r21d.models import VideoResNet, create_model


def load_model(path: str | os.PathLike[str], device: str = "cpu") -> VideoResNet:
    """Rebuild the network that a checkpoint holds, in eval mode, with its classes and input.

    Raises:
        CheckpointError: the file is missing, damaged or no r21d checkpoint.
    """
    from r21d.weights import CheckpointError, load_checkpoint, load_weights

    try:
        model = create_model(**load_checkpoint(path).config)
        load_weights(model, path)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{os.fspath(path)} is not a usable checkpoint: {error}") from error
    return model.eval().to(device)
