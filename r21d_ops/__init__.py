"""Fused (2+1)D convolutions for PyTorch: operator, drop-in module, ``fuse`` for whole models."""

from r21d_ops.backends import backends
from r21d_ops.basic_block import FusedBasicBlock
from r21d_ops.functional import conv2plus1d
from r21d_ops.fuse import fuse, fuse_report
from r21d_ops.modules import Conv2Plus1D

__version__ = "0.1.0"

__all__ = ["Conv2Plus1D", "FusedBasicBlock", "backends", "conv2plus1d", "fuse", "fuse_report"]
