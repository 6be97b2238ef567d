"""Quality against dense: classes of a picture, of pixels, and pictures."""

from __future__ import annotations

import math

import pytest
import torch

from torchdelta.quality.compare import (
    ClassAgreement,
    ClassTally,
    class_agreement,
    is_class_scores,
    pixel_agreement,
    pixel_classes,
    probabilities,
    psnr_db,
)


def logits(*p: float) -> torch.Tensor:
    return torch.tensor([p]).log() + 3.0


def test_probabilities_are_softmax_of_scores_and_stay_as_they_are() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1]])
    for given in (p, logits(0.7, 0.2, 0.1), p[..., None, None], p.half()):
        assert torch.allclose(probabilities(given), p[0].double(), atol=1e-3)
    # what looks like scores is read as the other side is
    assert torch.equal(probabilities(torch.tensor([0.9, 0.3]), like=p).float(),
                       torch.tensor([0.9, 0.3]))  # fmt: skip


@pytest.mark.parametrize("shape", [(5,), (1, 5), (1, 5, 1, 1)])
def test_class_scores_by_shape(shape: tuple[int, ...]) -> None:
    assert is_class_scores(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1,), (1, 1), (2, 5), (1, 5, 2, 2), (1, 1, 2, 2)])
def test_no_class_scores_by_shape(shape: tuple[int, ...]) -> None:
    assert not is_class_scores(torch.zeros(shape))


def test_classes_agree_differ_and_tie() -> None:
    dense = logits(0.6, 0.3, 0.1)
    same = class_agreement(logits(0.5, 0.4, 0.1), dense)
    assert (same.same, same.near_tie) == (True, False)
    assert same.distance == pytest.approx(0.1, abs=1e-6)
    other = class_agreement(logits(0.3, 0.6, 0.1), dense)
    assert (other.same, other.near_tie) == (False, False)
    assert other.distance == pytest.approx(0.3, abs=1e-6)
    # dense decides what a tie is
    assert class_agreement(dense, logits(0.405, 0.395, 0.2)).near_tie
    assert not class_agreement(logits(0.405, 0.395, 0.2), dense).near_tie
    assert not class_agreement(dense, logits(0.42, 0.38, 0.2)).near_tie
    # a shift of all scores changes no probability
    assert class_agreement(dense + 7, dense).distance < 1e-6


def test_total_variation_reaches_from_0_to_1() -> None:
    assert class_agreement(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])).distance == 1
    assert class_agreement(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]])).distance == 0


def tally(*frames: ClassAgreement) -> ClassTally:
    counted = ClassTally()
    for one in frames:
        counted.add(one)
    return counted


def test_near_ties_are_left_out_of_the_count_and_not_of_the_distance() -> None:
    clear = [ClassAgreement(True, False, 0.04)] * 36 + [ClassAgreement(False, False, 0.06)]
    ties = [ClassAgreement(False, True, 0.05)] * 37 + [ClassAgreement(True, True, 0.09)]
    counted = tally(*clear, *ties)
    assert "same class as dense: 36 of 37 frames (38 near-ties left out)" in str(counted)
    assert counted.same_share == 36 / 37
    mean = (36 * 0.04 + 0.06 + 37 * 0.05 + 0.09) / 75
    assert counted.mean_distance == pytest.approx(mean)
    assert f"class probabilities differ by {mean:.3f}" in str(counted)
    assert "near-tie" not in str(tally(*clear))
    assert "(1 near-tie left out)" in str(tally(*clear, ties[0]))
    assert tally(*ties).same_share is None
    assert "cannot be told, dense's best two are near-ties in all 38 frames" in str(tally(*ties))
    assert str(tally()) == "no frame compared"


def test_classes_of_pixels() -> None:
    scores = torch.zeros(1, 3, 2, 2)
    scores[0, 2, 0, 1] = scores[0, 1, 1, 1] = 1
    assert pixel_classes(scores).tolist() == [[0, 2], [0, 1]]
    other = scores.clone()
    other[0, 0, 0, 1] = 2
    assert pixel_agreement(other, scores) == 0.75
    assert pixel_agreement(scores, scores) == 1


def test_one_map_is_a_logit_or_a_probability() -> None:
    probability = torch.tensor([[[[0.2, 0.6], [0.9, 0.4]]]])
    assert pixel_classes(probability).tolist() == [[False, True], [True, False]]
    logit = torch.tensor([[[[-0.2, 0.6], [0.9, 0.4]]]])
    assert pixel_classes(logit).tolist() == [[False, True], [True, True]]
    # both sides are read alike, as dense's
    assert pixel_agreement(logit, probability) == 1
    assert pixel_agreement(probability, logit) == 0.75


def test_psnr() -> None:
    dense = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert psnr_db(dense + 0.01, dense, 1.0) == pytest.approx(40, abs=1e-3)
    assert psnr_db(dense + 0.01, dense, 2.0) == pytest.approx(46.02, abs=1e-2)
    equal = psnr_db(dense, dense, 1.0)
    assert 100 < equal < 200
    assert math.isfinite(equal)
