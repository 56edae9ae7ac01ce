"""R(2+1)D-18 the way people have it today: plain ``torch.nn`` layers, nothing of this library.

The demo's subject for ``fuse``. Layout and state-dict keys are those of torchvision's
``r2plus1d_18``, whose own class is taken where torchvision is installed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLASSES = 400


def build_stock(seed: int) -> tuple[nn.Module, str]:
    """A stock R(2+1)D-18 in eval mode, and where it comes from.

    Weights and BatchNorm statistics are random: logits that agree by chance would show nothing
    with statistics still at their initial zeros and ones.
    """
    torch.manual_seed(seed)
    model, source = _torchvision() or (_StockR2Plus1D(), "plain torch.nn layers")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, 0.0, 0.1)
            module.running_mean.normal_(0.0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return model.eval(), source


def _torchvision() -> tuple[nn.Module, str] | None:
    try:
        import torchvision
        from torchvision.models.video import r2plus1d_18
    except (ImportError, OSError, RuntimeError):
        # RuntimeError: a torchvision whose compiled part was built for another torch.
        return None
    return r2plus1d_18(num_classes=CLASSES), f"torchvision {torchvision.__version__}"


class _StockR2Plus1D(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(3, 45, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False),
            nn.BatchNorm3d(45),
            nn.ReLU(inplace=True),
            nn.Conv3d(45, 64, (3, 1, 1), (1, 1, 1), (1, 0, 0), bias=False),
            nn.BatchNorm3d(64),
            nn.ReLU(inplace=True),
        )
        self.layer1 = nn.Sequential(_StockBlock(64, 64, 1), _StockBlock(64, 64, 1))
        self.layer2 = nn.Sequential(_StockBlock(64, 128, 2), _StockBlock(128, 128, 1))
        self.layer3 = nn.Sequential(_StockBlock(128, 256, 2), _StockBlock(256, 256, 1))
        self.layer4 = nn.Sequential(_StockBlock(256, 512, 2), _StockBlock(512, 512, 1))
        self.avgpool = nn.AdaptiveAvgPool3d(1)
        self.fc = nn.Linear(512, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


class _StockBlock(nn.Module):
    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        # torchvision computes M once a block; the published weights have these sizes.
        mid = in_planes * planes * 27 // (in_planes * 9 + 3 * planes)
        self.conv1 = nn.Sequential(
            _conv2plus1d(in_planes, mid, planes, stride),
            nn.BatchNorm3d(planes),
            nn.ReLU(inplace=True),
        )
        self.conv2 = nn.Sequential(_conv2plus1d(planes, mid, planes, 1), nn.BatchNorm3d(planes))
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_planes != planes:
            self.downsample = nn.Sequential(
                nn.Conv3d(in_planes, planes, 1, stride, bias=False), nn.BatchNorm3d(planes)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(self.conv2(self.conv1(x)) + shortcut)
        return out


def _conv2plus1d(in_planes: int, mid: int, planes: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(in_planes, mid, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False),
        nn.BatchNorm3d(mid),
        nn.ReLU(inplace=True),
        nn.Conv3d(mid, planes, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False),
    )
