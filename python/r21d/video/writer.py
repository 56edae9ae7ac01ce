"""Writing H.264 files."""

from __future__ import annotations

import io
import os
from fractions import Fraction

import torch

from r21d.atomic import write_atomically
from r21d.video.decoder import import_av
from r21d.video.sampling import check_frame_rate


def write_video(
    path: str | os.PathLike[str],
    frames: torch.Tensor,
    frame_rate: float = 25.0,
    *,
    quantizer: int = 18,
    all_intra: bool = False,
) -> None:
    """Write RGB frames, uint8 (T, H, W, 3), as H.264 (libx264, yuv420p, BT.709) in MP4.

    Every frame gets the same ``quantizer`` (0 to 51, larger is coarser). ``all_intra=True`` codes
    each frame by itself, so that a decoded frame depends on nothing but its own pixels, least of
    all on its place in the video. The file appears whole or not at all.

    Raises ValueError for another dtype or shape, no frames, or an odd height or width.
    """
    _check_frames(frames)
    rate = Fraction(check_frame_rate(frame_rate)).limit_denominator(100_000)
    if not 0 <= quantizer <= 51:
        raise ValueError(f"quantizer must be between 0 and 51, got {quantizer}")
    write_atomically(path, _encode(frames, rate, _options(quantizer, all_intra)))


def _encode(frames: torch.Tensor, rate: Fraction, options: dict[str, str]) -> bytes:
    av = import_av()
    content = io.BytesIO()
    colours = av.video.reformatter
    converter = colours.VideoReformatter()
    with av.open(content, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        stream.codec_context.colorspace = colours.Colorspace.ITU709
        stream.codec_context.color_range = colours.ColorRange.MPEG
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(pixels.contiguous().numpy(), format="rgb24")
            frame = converter.reformat(
                frame,
                format="yuv420p",
                dst_colorspace=colours.Colorspace.ITU709,
                dst_color_range=colours.ColorRange.MPEG,
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return content.getvalue()


def _options(quantizer: int, all_intra: bool) -> dict[str, str]:
    options = {"preset": "veryfast", "qp": str(quantizer)}
    if all_intra:
        options["x264-params"] = "keyint=1:aq-mode=0:scenecut=0:ipratio=1.0"
    return options


def _check_frames(frames: torch.Tensor) -> None:
    if frames.dtype != torch.uint8 or frames.dim() != 4 or frames.shape[-1] != 3:
        raise ValueError(
            f"frames must be uint8 (T, H, W, 3), got {frames.dtype} {tuple(frames.shape)}"
        )
    count, height, width, _ = frames.shape
    if not count:
        raise ValueError("frames is empty: a video needs at least one frame")
    if not height or not width or height % 2 or width % 2:
        raise ValueError(
            f"frames must have an even height and width (H.264 4:2:0), got {height}x{width}"
        )
