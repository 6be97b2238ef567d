from types import SimpleNamespace

import numpy as np
import pytest
import torch

from torchdelta.report import heat_map


def plan_of(**macs):
    return SimpleNamespace(
        steps=tuple(SimpleNamespace(name=name, macs=count) for name, count in macs.items())
    )


def mask(h, w, *pixels):
    out = torch.zeros(h, w, dtype=torch.bool)
    for y, x in pixels:
        out[y, x] = True
    return out


def test_heat_is_each_steps_share_of_the_macs_where_it_was_active():
    plan = plan_of(fine=100, coarse=300)
    active = {"fine": mask(4, 8, (0, 0)), "coarse": mask(2, 4, (1, 3), (0, 0))}
    expected = np.zeros((4, 8), np.float32)
    expected[0, 0] += 0.25
    expected[2:4, 6:8] += 0.75
    expected[0:2, 0:2] += 0.75
    got = heat_map(plan, active, (4, 8))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_mean_of_the_heat_is_the_mac_share():
    generator = torch.Generator().manual_seed(0)
    sizes = {"a": (32, 48), "b": (32, 48), "c": (16, 24), "d": (4, 6), "e": (64, 96), "f": (1, 1)}
    macs = {"a": 1000, "b": 30, "c": 444, "d": 5000, "e": 777, "f": 10}
    active = {name: torch.rand(size, generator=generator) < 0.3 for name, size in sizes.items()}
    active["f"][:] = True
    share = sum(macs[n] * active[n].float().mean().item() for n in sizes) / sum(macs.values())
    got = heat_map(plan_of(**macs), active, (32, 48))
    assert got.mean() == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (7, 63), (130, 33), (576, 768)])
def test_all_active_is_one_and_none_active_is_zero_at_any_size(size):
    h, w = size
    sizes = {"a": (h, w), "b": ((h + 1) // 2, (w + 1) // 2), "c": ((h + 31) // 32, 5), "d": (1, 1)}
    plan = plan_of(a=7, b=10**9, c=123456, d=1)
    full = {name: torch.ones(s, dtype=torch.bool) for name, s in sizes.items()}
    np.testing.assert_allclose(heat_map(plan, full, size), 1, atol=1e-6)
    none = {name: torch.zeros(s, dtype=torch.bool) for name, s in sizes.items()}
    got = heat_map(plan, none, size)
    assert got.shape == size
    assert not got.any()


def test_steps_without_macs_count_nothing_and_need_no_mask():
    plan = plan_of(conv=50, relu=0)
    got = heat_map(plan, {"conv": mask(2, 2, (0, 1))}, (2, 2))
    np.testing.assert_array_equal(got, [[0, 1], [0, 0]])
    assert not heat_map(plan_of(relu=0), {}, (3, 3)).any()


def test_a_global_step_spreads_over_the_picture():
    plan = plan_of(head=25, conv=75)
    active = {"head": mask(1, 1, (0, 0)), "conv": mask(5, 5)}
    np.testing.assert_allclose(heat_map(plan, active, (9, 11)), 0.25, atol=1e-6)


def test_missing_active_set_is_named():
    with pytest.raises(ValueError, match=r"no active set for b, c; .*record=True"):
        heat_map(plan_of(a=1, b=1, c=1), {"a": mask(2, 2)}, (2, 2))
