"""The publish rule, thresholds, profiles, and the two errors apart."""

import json
import math

import pytest
import torch
from torch import nn

import torchdelta
from random_nets import compiled_net
from support import ENGINE_CASES, move, new_session
from torchdelta import Profile, ProfileError
from torchdelta.ops.base import Axis
from torchdelta.ops.gate import input_gate, input_threshold, value_gate
from torchdelta.runtime.inspect import frame_state
from torchdelta.runtime.thresholds import default_grain

pytestmark = pytest.mark.check

NAN = float("nan")


def test_threshold_zero_compares_values() -> None:
    old = torch.tensor([[0.0, 1.0], [2.0, 3.0], [0.0, -0.0]])
    new = torch.tensor([[0.0, 1.0], [2.0, 3.0 + 1e-6], [-0.0, 0.0]])
    assert value_gate(new, old, 0.0, "rms", 64).tolist() == [[False], [True], [False]]


def test_nan_publishes_and_heals() -> None:
    old = torch.tensor([[0.0], [NAN], [NAN]])
    new = torch.tensor([[NAN], [0.0], [NAN]])
    for threshold in (0.0, 1e9):
        assert value_gate(new, old, threshold, "rms", 64).tolist() == [[True], [True], [True]]


def test_exactly_at_the_threshold_stays_quiet() -> None:
    old, new = torch.zeros(1, 4), torch.full((1, 4), 0.5)
    assert not value_gate(new, old, 0.5, "rms", 64).any()
    assert value_gate(new, old, 0.49, "rms", 64).all()


def test_norms() -> None:
    old, new = torch.zeros(1, 4), torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    assert value_gate(new, old, 0.6, "max", 64).all()
    assert not value_gate(new, old, 0.6, "rms", 64).any()
    assert value_gate(new, old, 0.49, "rms", 64).all()


@pytest.mark.parametrize("channels", [64, 65, 128, 150])
def test_groups_are_published_alone(channels: int) -> None:
    groups = math.ceil(channels / 64)
    for group in range(groups):
        old, new = torch.zeros(3, channels), torch.zeros(3, channels)
        last = min(channels, 64 * (group + 1)) - 1
        new[1, last] = 1.0
        # the last group's mean is over its own channels only
        size = last + 1 - 64 * group
        just_below = 0.99 / math.sqrt(size)
        gate = value_gate(new, old, just_below, "rms", 64)
        assert gate.nonzero().tolist() == [[1, group]]
        assert not value_gate(new, old, 1.01 / math.sqrt(size), "rms", 64).any()


@pytest.mark.parametrize("engine", ENGINE_CASES)
def test_a_session_writes_only_the_groups_that_moved(engine: str) -> None:
    conv = nn.Conv2d(1, 128, 1, bias=False)
    with torch.no_grad():
        conv.weight.fill_(0.01)
        conv.weight[64:] = 1.0
    tail = nn.Conv2d(128, 1, 1)
    fast = torchdelta.compile(nn.Sequential(conv, tail).eval(), torch.rand(1, 1, 8, 8),
                              input_range=(0, 1))  # fmt: skip
    session = new_session(fast, engine, 0.04)
    x = torch.rand(1, 8, 8)
    session.step({"s": x})
    first = frame_state(session).view(1, 0).clone()
    y = x.clone()
    y[0, 2:5, 2:5] += 0.3
    session.step({"s": y})
    second = frame_state(session).view(1, 0)
    moved = first != second
    # the scale is the value's own: the first group's change is far below it
    assert not moved[..., :64].any()
    assert moved[3, 3, 64:].all()
    assert session.stream("s").audit().ok


def gate_frame(new: torch.Tensor, old: torch.Tensor, threshold: float) -> torch.Tensor:
    return input_gate(new, old, threshold, torch.ones(new.shape[-1]))


def test_input_gate_thresholds() -> None:
    assert input_threshold(0.04) == pytest.approx(8 / 255)
    assert input_threshold(0.08) == pytest.approx(16 / 255)
    assert input_threshold(0.04, 0.5) == pytest.approx(4 / 255)
    assert input_threshold(0.0) == 0.0


def test_input_gate_averages_over_the_box_and_dilates() -> None:
    old, new = torch.zeros(9, 9, 3), torch.zeros(9, 9, 3)
    new[4, 4] = 0.9
    box = torch.zeros(9, 9, dtype=torch.bool)
    box[2:7, 2:7] = True
    assert torch.equal(gate_frame(new, old, 0.099), box)
    assert not gate_frame(new, old, 0.101).any()
    # the mean over channels: one of three is a third
    new[4, 4, 1:] = 0
    assert not gate_frame(new, old, 0.034).any()
    assert gate_frame(new, old, 0.033).sum() == 25


def test_input_gate_counts_only_pixels_inside() -> None:
    old, new = torch.zeros(9, 9, 1), torch.zeros(9, 9, 1)
    new[0, 0] = 0.4
    # four pixels in the corner's box: mean .1; six in its neighbours': .067
    assert gate_frame(new, old, 0.099).nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_input_gate_sees_changes_that_cancel() -> None:
    old = torch.full((9, 9, 1), 0.5)
    new = old.clone()
    new[0::2] += 0.2
    new[1::2] -= 0.2
    assert gate_frame(new, old, 0.19).all()


def gate_in_cells(new: torch.Tensor, old: torch.Tensor, threshold: float) -> torch.Tensor:
    return input_gate(new, old, threshold, torch.ones(new.shape[-1]), grain=4)


def test_input_gate_in_cells_overlooks_what_is_thin_and_scattered() -> None:
    old = torch.zeros(40, 40, 1)
    new = old.clone()
    # an edge that lies beside where it was: a line of one pixel, 0.25 of each 3x3 box on it
    new[:, 21] = 0.75
    assert gate_frame(new, old, 0.1).any()
    assert not gate_in_cells(new, old, 0.1).any()
    # and all of it where the same adds up: 12 pixels of 144
    assert gate_in_cells(new, old, 0.06).any()


def test_input_gate_in_cells_sees_what_is_small_and_strong() -> None:
    old = torch.zeros(40, 40, 1)
    new = old.clone()
    new[21:24, 21:24] = 0.41
    cells = torch.zeros(40, 40, dtype=torch.bool)
    cells[16:28, 16:28] = True
    assert torch.equal(gate_in_cells(new, old, 0.1), cells)
    new[21:24, 21:24] = 0.39
    assert not gate_in_cells(new, old, 0.1).any()


def test_cells_grow_with_the_total_stride() -> None:
    strides = (1, 2, 4, 8, 12, 16, 32, 64)
    fixed = [default_grain((s, s), followed=False) for s in strides]
    assert fixed == [1, 1, 1, 2, 3, 4, 8, 8]
    followed = [default_grain((s, s), followed=True) for s in strides]
    assert followed == [4, 4, 4, 4, 4, 4, 8, 8]
    assert default_grain((32, 8), followed=False) == 2


def test_a_deep_network_of_a_fixed_camera_is_gated_in_cells() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, 2, 1), *(nn.Conv2d(4, 4, 3, 2, 1) for _ in range(4))]
    fast = torchdelta.compile(
        nn.Sequential(*layers).eval(), torch.zeros(1, 3, 96, 96, dtype=torch.uint8)
    )
    changed = []
    for grain in (None, 1):
        session = fast.session(grain=grain)
        assert session.grain == grain or session.grain == 8
        frame = torch.full((3, 96, 96), 100, dtype=torch.uint8)
        session.step({"a": frame})
        # 2x2 pixels: .44 of a 3x3 box, more than 8 levels, less than 4 times 8
        frame[:, 40:42, 40:42] = 140
        changed.append(session.step({"a": frame})["a"].stats.changed_input)
        frame[:, 40:48, 40:48] = 140
        changed.append(session.step({"a": frame})["a"].stats.changed_input)
    # 3x3 cells; boxes that hold two of the pixels or more, dilated
    assert changed[:3] == [0, (24 / 96) ** 2, (6**2 - 4) / 96**2]
    assert 0 < changed[3] < changed[1]


def test_input_gate_in_cells_publishes_whole_cells_and_their_neighbours() -> None:
    old = torch.zeros(42, 41, 1)
    new = old.clone()
    # two cells of 4x4: 3x3 cells around them and around those at their sides hold 32 of 144 pixels
    new[8:16, 8:12] = 0.5
    cells = torch.zeros(42, 41, dtype=torch.bool)
    cells[4:20, 0:20] = True
    assert torch.equal(gate_in_cells(new, old, 0.11), cells)
    assert not gate_in_cells(new, old, 0.13).any()
    # the last cells are cut off, and the mean is over the pixels that there are
    new = old.clone()
    new[36:, 36:] = 0.1
    cells = torch.zeros(42, 41, dtype=torch.bool)
    cells[36:, 36:] = True
    assert torch.equal(gate_in_cells(new, old, 0.099), cells)
    assert not gate_in_cells(new, old, 0.101).any()


def test_input_gate_in_cells_at_zero_is_exact() -> None:
    old = torch.rand(9, 9, 3)
    new = old.clone()
    new[3, 5, 1] += 1e-6
    assert gate_in_cells(new, old, 0.0).nonzero().tolist() == [[3, 5]]


def test_input_gate_at_zero_is_exact() -> None:
    old = torch.rand(9, 9, 3)
    new = old.clone()
    new[3, 5, 1] += 1e-6
    assert gate_frame(new, old, 0.0).nonzero().tolist() == [[3, 5]]


def test_normalised_input_is_judged_in_units_of_full_scale() -> None:
    """The same camera frames give the same mask, however the model wants its numbers."""
    # no mean lies on the threshold itself, where rounding would decide
    torch.manual_seed(1)
    a = torch.randint(0, 256, (1, 3, 24, 24), dtype=torch.uint8)
    b = (a.int() + torch.randint(-12, 13, a.shape)).clamp(0, 255).to(torch.uint8)
    masks = []
    for keywords in (
        {"input_range": (0, 1)},
        {"input_range": (0, 255)},
        {"input_range": (0, 1), "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)},
    ):
        fast = torchdelta.compile(nn.Conv2d(3, 2, 3, padding=1).eval(), a, **keywords)
        session = fast.session()
        session.step({"s": a})
        masks.append(session.step({"s": b})["s"].changed)
    assert 0 < int(masks[0].sum()) < masks[0].numel()
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])


def two_layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 2, 1),
    ).eval()  # fmt: skip


@pytest.fixture
def fast() -> torchdelta.CompiledModel:
    return torchdelta.compile(two_layers(), torch.rand(1, 3, 16, 16), input_range=(0, 1))


def test_thresholds_are_tolerance_times_multiplier_times_rms(
    fast: torchdelta.CompiledModel,
) -> None:
    name = fast.plan.values[1].name
    profile = Profile({name: 2.0, "*": 0.5})
    session = new_session(fast, "torch", 0.1, profile=profile)
    session.step({"s": torch.rand(3, 16, 16)})
    state = frame_state(session)
    for value, multiplier in ((1, 2.0), (2, 0.5)):
        rms = float(state.view(value, 0).square().mean().sqrt())
        assert state.thresholds[0, value] == pytest.approx(0.1 * multiplier * rms)
    # only the caller reads the last one
    assert state.thresholds[0, 3] == 0.0
    assert state.input_threshold[0] == pytest.approx(8 / 255 * 0.1 / 0.04)


def test_a_black_first_frame_gives_no_scale(fast: torchdelta.CompiledModel) -> None:
    session = fast.session()
    state = frame_state(session)
    dark = torch.zeros(3, 16, 16)
    session.step({"s": dark})
    session.step({"s": dark + 0.01 * torch.rand(3, 16, 16)})
    assert not state.thresholds.any()
    session.step({"s": torch.rand(3, 16, 16)})
    assert state.thresholds[0, 1] > 0
    kept = state.thresholds.copy()
    session.step({"s": 2 * torch.rand(3, 16, 16) / 3})
    assert (state.thresholds == kept).all()
    session.stream("s").refresh()
    session.step({"s": torch.rand(3, 16, 16) / 2})
    assert (state.thresholds[0, 1:3] < kept[0, 1:3]).all()
    # a refresh on a black frame waits for one that tells something
    session.stream("s").refresh()
    session.step({"s": dark})
    assert not state.thresholds.any()
    session.step({"s": torch.rand(3, 16, 16)})
    assert state.thresholds[0, 1] > 0
    session.stream("s").reset()
    session.step({"s": dark})
    assert not state.thresholds.any()


def test_a_black_frame_of_a_normalised_network_is_black() -> None:
    """Mean subtraction gives each channel another value: that is no contrast."""
    fast = torchdelta.compile(
        two_layers(), torch.rand(1, 3, 16, 16), input_range=(0, 1),
        mean=(0.2, 0.5, 0.9), std=(0.2, 0.2, 0.2),
    )  # fmt: skip
    session = fast.session()
    session.step({"s": torch.zeros(3, 16, 16)})
    assert not frame_state(session).thresholds.any()


def test_a_profile_gives_the_same_result_after_loading(tmp_path) -> None:
    fast, _ = compiled_net("conv2d", 1)
    generator = torch.Generator().manual_seed(0)
    frames = [torch.rand(1, *fast.plan.shape, generator=generator)]
    for kind in ("patch", "noise", "stripes", "patch", "pixel"):
        frames.append(move(frames[-1], kind, generator))
    session = new_session(fast, "torch", 0.1, profile=Profile({"*": 0.7, "input": 0.3}, norm="max"))
    outputs = [session.step({"s": x})["s"].output for x in frames]
    path = tmp_path / "profile.json"
    session.stream("s").profile().save(path)
    loaded = Profile.load(path)
    assert loaded == session.stream("s").profile()
    again = new_session(fast, "torch", 0.1, profile=loaded)
    for x, before in zip(frames, outputs, strict=True):
        after = again.step({"s": x})["s"].output
        assert torchdelta.relative_error(after, before) == 0.0
    assert (frame_state(again).thresholds == frame_state(session).thresholds).all()


def test_compile_takes_a_profile_path(tmp_path) -> None:
    path = tmp_path / "p.json"
    Profile({"*": 0.0, "input": 0.0}).save(path)
    model = two_layers()
    fast = torchdelta.compile(model, torch.rand(1, 3, 16, 16), input_range=(0, 1), profile=path)
    for seed in range(3):
        x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            assert torchdelta.relative_error(fast(x), model(x)) < 1e-5


BAD_PROFILES = {
    "missing": (None, "cannot read the profile"),
    "no json": ("{", "cannot read the profile"),
    "list": ("[]", "format is 'list'"),
    "format": ('{"format": "other/1"}', "format is 'other/1'"),
    "entry": ('{"format": "torchdelta-profile/1", "rmss": {}}', "unknown entries: rmss"),
    "norm": ('{"format": "torchdelta-profile/1", "norm": "l1"}', "norm is 'l1'"),
    "negative": (
        '{"format": "torchdelta-profile/1", "rms": {"a": -1}}',
        "expected a finite number >= 0",
    ),
    "text": (
        '{"format": "torchdelta-profile/1", "multipliers": {"a": "b"}}',
        "expected a finite number",
    ),
    "table": ('{"format": "torchdelta-profile/1", "rms": 3}', "no object"),
}


@pytest.mark.parametrize("kind", BAD_PROFILES)
def test_bad_profiles_are_refused(tmp_path, kind: str) -> None:
    text, message = BAD_PROFILES[kind]
    path = tmp_path / "p.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ProfileError, match=message):
        Profile.load(path)


def test_a_profile_of_another_network_is_refused() -> None:
    with pytest.raises(ProfileError, match=r"2 values that this plan .* gate: nose, toes"):
        torchdelta.compile(two_layers(), torch.rand(1, 3, 16, 16),
                           profile=Profile({"nose": 1.0}, {"toes": 1.0}))  # fmt: skip


def test_a_session_never_writes_into_profile_or_plan(fast: torchdelta.CompiledModel) -> None:
    profile = Profile()
    session = new_session(fast, "torch", 0.1, profile=profile)
    before = json.dumps([dict(profile.multipliers), dict(profile.rms)])
    session.step({"s": torch.rand(3, 16, 16)})
    assert session.stream("s").profile().rms
    assert json.dumps([dict(profile.multipliers), dict(profile.rms)]) == before


@pytest.mark.parametrize("engine", ENGINE_CASES)
@pytest.mark.parametrize("off", ["input", "*"])
def test_the_two_errors_are_apart(engine: str, off: str) -> None:
    """Input gate off: both errors agree. Layer gates off: the layer error vanishes."""
    model = two_layers()
    fast = torchdelta.compile(model, torch.rand(1, 3, 16, 16), input_range=(0, 1))
    session = new_session(fast, engine, 0.2, profile=Profile({off: 0.0}))
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 3, 16, 16, generator=generator)
    seen = 0.0
    for kind in ("first", *["noise", "patch", "pixel"] * 4):
        x = move(x, kind, generator)
        # some engines have the session on a GPU
        out = session.step({"s": x})["s"].output.cpu()
        error = torchdelta.relative_error(out, fast.dense(x))
        layer_error = torchdelta.relative_error(
            out, fast.dense(session.stream("s").published().cpu())
        )
        if off == "input":
            assert error == pytest.approx(layer_error, abs=1e-6)
            seen = max(seen, layer_error)
        else:
            assert layer_error <= 1e-5
            seen = max(seen, error)
    assert seen > 1e-3, "the gate that is on must leave a trace"


@pytest.mark.parametrize("engine", ENGINE_CASES)
def test_small_changes_add_up_and_speak_up(engine: str) -> None:
    """A slow drift below the threshold is published once it has grown (truncation remembers)."""
    fast = torchdelta.compile(two_layers(), torch.rand(1, 3, 16, 16), input_range=(0, 1))
    session = new_session(fast, engine, 0.04)
    x = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.5
    session.step({"s": x})
    published = []
    for _ in range(20):
        x = x + 0.01
        published.append(session.step({"s": x})["s"].stats.changed_input)
        assert float((session.stream("s").published()[0].cpu() - x).abs().max()) <= 8 / 255 + 1e-6
    assert published[0] == 0.0
    assert 3 <= sum(p > 0 for p in published) <= 10


def test_axis_windows_equal_their_tables() -> None:
    generator = torch.Generator().manual_seed(0)
    for n, k, s, d, p in [(17, 3, 2, 1, 1), (17, 5, 1, 2, 4), (16, 2, 3, 1, 0), (9, 1, 2, 1, 0),
                          (1, 3, 1, 1, 1), (5, 3, 2, 2, 3)]:  # fmt: skip
        out = (n + 2 * p - d * (k - 1) - 1) // s + 1
        window = Axis(n, out, k, s, d, p)
        table = Axis(n, out, table=tuple(tuple(row) for row in window.taps.tolist()))
        for _ in range(4):
            mask = torch.rand(n, n, generator=generator) < 0.2
            for dim in (0, 1):
                assert torch.equal(window.spread(mask, dim), table.spread(mask, dim))
