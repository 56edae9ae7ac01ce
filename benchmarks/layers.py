"""The (2+1)D layers of R(2+1)D-18 as data, with the arithmetic and the traffic of each.

The shapes are those of Table 1 of the paper with its M (section 3.5) and a stem of 45 channels.
"""

from __future__ import annotations

from dataclasses import dataclass

from r21d_ops.problem import Triple, output_size


@dataclass(frozen=True)
class Layer:
    """One (2+1)D convolution: C channels in, M between, O out.

    Attributes:
        name: as in Table 1; ``conv3_1a`` is the first, strided convolution of conv3_1.
        times: how often the 18-layer network has it.
        in_channels, mid_channels, out_channels: C, M, O.
        frame_stride: network frames for one input frame (2 behind a temporal stride of 2).
        side: height and width of the input at 112×112 pixels.
        kernel, stride, padding: (t, h, w).
    """

    name: str
    times: int
    in_channels: int
    mid_channels: int
    out_channels: int
    frame_stride: int
    side: int
    kernel: Triple = (3, 3, 3)
    stride: Triple = (1, 1, 1)
    padding: Triple = (1, 1, 1)


def _rows(*layers: Layer) -> dict[str, Layer]:
    return {layer.name: layer for layer in layers}


LAYERS: dict[str, Layer] = _rows(
    Layer("stem", 1, 3, 45, 64, 1, 112, (3, 7, 7), (1, 2, 2), (1, 3, 3)),
    Layer("conv2_x", 4, 64, 144, 64, 1, 56),
    Layer("conv3_1a", 1, 64, 230, 128, 1, 56, stride=(2, 2, 2)),
    Layer("conv3_x", 3, 128, 288, 128, 2, 28),
    Layer("conv4_1a", 1, 128, 460, 256, 2, 28, stride=(2, 2, 2)),
    Layer("conv4_x", 3, 256, 576, 256, 4, 14),
    Layer("conv5_1a", 1, 256, 921, 512, 4, 14, stride=(2, 2, 2)),
    Layer("conv5_x", 3, 512, 1152, 512, 8, 7),
)


@dataclass(frozen=True)
class LayerProblem:
    """A layer at one clip length, batch size and pixel size (``shrink`` divides every extent)."""

    layer: Layer
    batch: int
    frames: int
    shrink: int = 1

    @property
    def channels(self) -> tuple[int, int, int]:
        """(C, M, O)."""
        layer = self.layer
        wanted = (layer.in_channels, layer.mid_channels, layer.out_channels)
        c, m, o = (n if n < 8 else max(8, n // self.shrink) for n in wanted)
        return c, m, o

    @property
    def size(self) -> Triple:
        """(T, H, W) of the input."""
        side = max(1, self.layer.side // self.shrink)
        return max(1, self.frames // self.layer.frame_stride), side, side

    @property
    def mid_size(self) -> Triple:
        """(T, H', W') between the two convolutions."""
        t, h, w = self.size
        _, kh, kw = self.layer.kernel
        _, sh, sw = self.layer.stride
        _, ph, pw = self.layer.padding
        return t, output_size(h, kh, sh, ph), output_size(w, kw, sw, pw)

    @property
    def out_size(self) -> Triple:
        """(T', H', W') of the output."""
        t, h, w = self.mid_size
        return (
            output_size(t, self.layer.kernel[0], self.layer.stride[0], self.layer.padding[0]),
            h,
            w,
        )

    @property
    def flops(self) -> int:
        """Floating-point operations of one forward pass, two for each multiply-add."""
        c, m, o = self.channels
        kt, kh, kw = self.layer.kernel
        spatial = _volume(self.mid_size) * m * c * kh * kw
        temporal = _volume(self.out_size) * o * m * kt
        return 2 * self.batch * (spatial + temporal)

    def traffic(self, element_size: int) -> Traffic:
        """The bytes that must, or in stock PyTorch do, move through memory."""
        c, m, o = self.channels
        kt, kh, kw = self.layer.kernel
        return Traffic(
            input=self.batch * c * _volume(self.size) * element_size,
            mid=self.batch * m * _volume(self.mid_size) * element_size,
            output=self.batch * o * _volume(self.out_size) * element_size,
            weights=(m * c * kh * kw + o * m * kt) * element_size,
        )


@dataclass(frozen=True)
class Traffic:
    """Bytes of a layer's tensors, each once."""

    input: int
    mid: int
    output: int
    weights: int

    @property
    def fused(self) -> int:
        """Input, weights and output once each: the least that any version moves."""
        return self.input + self.output + self.weights

    @property
    def eager(self) -> int:
        """Four kernels: the intermediate is written and read around BatchNorm and around ReLU."""
        return self.fused + 6 * self.mid


def _volume(size: Triple) -> int:
    t, h, w = size
    return t * h * w
