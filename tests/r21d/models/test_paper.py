"""The paper's figures beside what is counted here (about 4 s).

Shows that every parameter count of Table 2 and every cost that VMZ prints is the counted one, that
the paper's claims are judged by the counts, and which of them do not hold.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from r21d.models import paper
from r21d.models.paper import Network
from r21d.models.registry import KINDS


def test_every_network_is_counted(networks: dict[str, Network]) -> None:
    assert set(networks) == {f"{family}_{depth}" for family in KINDS for depth in (18, 34)} | {
        "i3d"
    }
    assert all(tuple(networks[f"{f}_18"].infos) == paper.CLIP_LENS for f in KINDS)


def test_table_2_prints_our_parameters(networks: dict[str, Network]) -> None:
    assert list(paper.TABLE_2) == list(KINDS)
    found = {
        family: paper.printed_as(networks[f"{family}_18"].infos[8].parameters / 1e6, row.parameters)
        for family, row in paper.TABLE_2.items()
    }
    cut = {family for family, how in found.items() if how == "cut"}
    assert cut == {"rmc2", "rmc3", "r2plus1d"}
    assert {how for family, how in found.items() if family not in cut} == {"rounded"}


@pytest.mark.parametrize("clip_len", [8, 16])
def test_vmz_prints_our_multiply_adds(networks: dict[str, Network], clip_len: int) -> None:
    assert set(paper.VMZ_GMACS[clip_len]) == set(KINDS)
    for family, printed in paper.VMZ_GMACS[clip_len].items():
        gmacs = networks[f"{family}_18"].infos[clip_len].gmacs
        assert paper.printed_as(gmacs, printed) == "rounded", (family, gmacs)


def test_vmz_is_ahead_of_the_paper_everywhere() -> None:
    """As retrained networks are; a row read into the wrong place would show."""
    for family, row in paper.TABLE_2.items():
        for clip_len in paper.VMZ_GMACS:
            clip_top1, video_top1 = paper.vmz_accuracy(family, clip_len)
            assert row.clip_top1 < clip_top1 < video_top1
            assert row.video_top1 < video_top1
    assert paper.vmz_accuracy("r2plus1d", 16) == (57.3, 68.5)
    with pytest.raises(ValueError, match="kinetics400_vmz_9f"):
        paper.vmz_accuracy("r2plus1d", 9)


def test_order_of_figure_3(networks: dict[str, Network]) -> None:
    gmacs = {family: networks[f"{family}_18"].infos[8].gmacs for family in KINDS}
    order = "r2d rmc3 fr2d mc2 rmc4 rmc5 rmc2 mc5 mc4 r3d r2plus1d mc3"
    assert sorted(gmacs, key=gmacs.__getitem__) == order.split()


def test_claims_that_do_not_hold(networks: dict[str, Network]) -> None:
    claims = paper.check_claims(networks)
    assert len(claims) == 20
    assert [(claim.where, claim.found) for claim in claims if not claim.holds] == [
        ("1", "2.9, 2.9, 2.6, 2.0 times (MC2 to MC5)"),
        ("4.2", "conv3_x to conv5_x of rMC3 are 3d"),
        ("4.2", "conv3_1 leaves 4 of 8 frames; group 2 is 3d"),
        ("4.2", "2.0 to 3.2; 3.9 is over rMC5 (clip@1)"),
        ("Fig. 3", "3.1 (clip@1), 2.7 (video@1)"),
        ("4.3", "4.00 times; 7.34 is 34 layers at 32 to 18 at 8"),
        ("4.4", "67: 66 convolutions and fc"),
        ("appendix", "15,255 against 28,224"),
    ]


@pytest.mark.parametrize(
    ("put", "into", "verdicts"),
    [
        ("rmc2_18", "rmc3_18", {"rMC2 costs more than rMC3", "rMC3 costs less than f-R2D"}),
        ("mc3_18", "r2plus1d_18", {"R(2+1)D costs about as much as R3D"}),
        ("fr2d_18", "r2d_18", {"R2D is the cheapest and the least accurate"}),
        ("r3d_18", "fr2d_18", {"last conv: f-R2D 8x7x7, R3D and R(2+1)D 1x7x7"}),
        ("rmc3_18", "r3d_18", {"R(2+1)D has the parameters of R3D"}),
        ("r3d_18", "r2plus1d_18", {"R(2+1)D doubles the nonlinearities"}),
        ("mc5_18", "r3d_34", {"outputs 8x56x56 8x56x56 4x28x28 2x14x14 1x7x7"}),
    ],
)
def test_claims_are_judged_by_the_counts(
    networks: dict[str, Network], put: str, into: str, verdicts: set[str]
) -> None:
    """Another network in a name's place turns what the paper says of it into what is not so."""
    before = {claim.says for claim in paper.check_claims(networks) if claim.holds}
    after = paper.check_claims({**networks, into: replace(networks[put], name=into)})
    assert verdicts <= before - {claim.says for claim in after if claim.holds}


def test_claims_that_fail_could_hold(networks: dict[str, Network]) -> None:
    """The network that the paper may have meant, in the place of the one that it names."""
    meant = {
        "conv1 of R(2+1)D has the parameters of R3D's": ("r2plus1d_18", networks["r3d_18"]),
        "because rMC2 does not stride in time in group 3": ("rmc2_18", networks["mc2_18"]),
        "8 frames are 7.3 times cheaper than 32": (
            "r2plus1d_18",
            replace(
                networks["r2plus1d_18"],
                infos={**networks["r2plus1d_18"].infos, 32: networks["r2plus1d_34"].infos[32]},
            ),
        ),
    }
    for says, (name, network) in meant.items():
        verdict = {c.says: c.holds for c in paper.check_claims({**networks, name: network})}
        assert verdict[says], says


@pytest.mark.parametrize(
    ("value", "printed", "how"),
    [
        (33.370839, "33.4", "rounded"),
        (33.370839, "33.3", "cut"),
        (33.370839, "33.5", "differs"),
        (33.370839, "33.37", "rounded"),
        (33.06, "33", "rounded"),
        (33.96, "33", "cut"),
        (19.98, "20", "rounded"),
        (20.4, "19", "differs"),
    ],
)
def test_printed_as(value: float, printed: str, how: str) -> None:
    assert paper.printed_as(value, printed) == how
