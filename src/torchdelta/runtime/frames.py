"""Check frames at the public boundary and bring them to [H, W, C] on the session's device."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchdelta.errors import FrameError, first_lines
from torchdelta.ops.preprocess import Preprocess
from torchdelta.plan import Plan
from torchdelta.videoframe import VideoFrame

Picture = np.ndarray | Tensor
Frame = Picture | VideoFrame
# of a tensor, in one call
_KIND = attrgetter("shape", "dtype", "device", "requires_grad", "layout")
FRAME_DTYPES = (torch.uint8, torch.float32, torch.float16, torch.bfloat16)


def check_frame(
    frame: Any, plan: Plan, device: torch.device, dtype: torch.dtype, *, trust_device: bool = False
) -> Tensor:
    """Check one stream's frame.

    frame:   numpy [H, W, C] or [H, W] (as OpenCV and PyAV give them), or tensor [C, H, W] or
             [1, C, H, W]; uint8, or float in the plan's input range; or a `VideoFrame` of one
    dtype:   the compute dtype, whose range the frame must fit
    trust_device: leave the values of frames that are on a GPU already to the engine: looking at
             them would wait for the GPU
    returns: [H, W, C] where it is, on `device` or on the CPU; same values
    Raises:  FrameError for another type, size, dtype, channel count or device, for NaN or
             infinite values, and for what cannot be read at all: a frame comes from outside, and
             must not fail other streams' step.
    """
    try:
        return _checked(frame, plan, device, dtype, trust_device)
    except (FrameError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise FrameError(
            f"frame is a {type(frame).__name__} that cannot be read: {first_lines(error)}"
        ) from error


def _checked(
    frame: Any, plan: Plan, device: torch.device, dtype: torch.dtype, trust_device: bool
) -> Tensor:
    c, h, w = plan.shape
    frame = picture_of(frame)
    if isinstance(frame, np.ndarray):
        x = _from_numpy(frame)
    elif isinstance(frame, Tensor):
        x = _from_tensor(frame, device)
    else:
        raise FrameError(
            f"frame is a {type(frame).__name__}, expected a numpy array [H, W, C] or a tensor "
            "[C, H, W]" + ("; the source gave none" if frame is None else "")
        )
    if x.dtype not in FRAME_DTYPES:
        raise FrameError(
            f"frame has dtype {str(x.dtype).removeprefix('torch.')}, expected uint8, float32, "
            "float16 or bfloat16; convert it first"
        )
    if x.shape[2] != c:
        raise FrameError(
            f"frame has {x.shape[2]} channels, the network takes {c}"
            + ("; numpy frames are [H, W, C], tensors [C, H, W]" if x.shape[0] == c else "")
        )
    if x.shape[:2] != (h, w):
        raise FrameError(
            f"frame is {x.shape[0]}x{x.shape[1]}, this session runs {h}x{w} (height x width); "
            "open another session for this size, or resize the source"
        )
    if trust_device and x.device.type != "cpu":
        return x
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x)).any(-1).sum())
        raise FrameError(f"frame has NaN or infinite values at {bad} of {h * w} pixels")
    if x.is_floating_point() and dtype == torch.float16:
        largest = float(x.abs().max())
        if not bool(torch.isfinite(plan.preprocess.apply(x, dtype)).all()):
            raise FrameError(
                f"frame has values up to {largest:.3g}, beyond the range of float16 (65504); "
                "compile with dtype bf16 or fp32"
            )
    return x


def picture_of(frame: Any) -> Any:
    """Give the picture of a frame, which is the frame itself where it is no `VideoFrame`."""
    return frame.picture if isinstance(frame, VideoFrame) else frame


class Fitting:
    """Tells frames about which there is nothing to say, all streams' in one look.

    device: where they must be;  trust_device: as for `check_frame`
    """

    def __init__(self, plan: Plan, device: torch.device, *, trust_device: bool) -> None:
        trusted = FRAME_DTYPES if trust_device and device.type != "cpu" else (torch.uint8,)
        # the likely one comes first
        self._kinds = [
            (torch.Size(plan.shape), dtype, device, False, torch.strided) for dtype in trusted
        ]

    def taken(self, frames: Mapping[str, Any]) -> Mapping[str, Tensor] | None:
        """Give frames that are all tensors [C, H, W] as `check_frame` takes them; None: not all."""
        # before a step's launch: whatever is called here, the device waits for
        try:
            fit = all(
                type(frame) is Tensor and _KIND(frame) in self._kinds and not frame.is_neg()
                for frame in frames.values()
            )
        except RuntimeError:
            # a nested tensor has no shape
            return None
        return frames if fit else None


def plain_tensor(name: str, given: Tensor) -> Tensor:
    """Give a tensor of which engines can read the memory: of PyTorch's own class, and strided.

    Raises: FrameError for a sparse, nested or quantized one, and where a subclass keeps its data
    elsewhere (FakeTensor, MaskedTensor …).
    """
    with torch._C.DisableTorchFunctionSubclass():
        kind, what = type(given), None
        if kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
            what = f"a {kind.__name__}, whose values lie elsewhere"
        elif given.is_nested:
            what = "a nested tensor"
        elif given.layout != torch.strided:
            what = f"a tensor of layout {str(given.layout).removeprefix('torch.')}"
        elif given.is_quantized:
            what = f"a quantized tensor ({given.dtype})"
        elif given.is_meta:
            what = "on meta, where tensors hold no values"
        if what is not None:
            raise FrameError(f"{name} is {what}; expected a plain dense tensor")
        return given if kind is Tensor else given.as_subclass(Tensor)


def _from_numpy(frame: np.ndarray) -> Tensor:
    if isinstance(frame, np.ma.MaskedArray):
        raise FrameError(
            "frame is a masked array; hand over its data (`frame.filled()`), and what counts of it "
            "as the stream's region of interest"
        )
    if frame.ndim == 2:
        frame = frame[:, :, None]
    if frame.ndim != 3:
        raise FrameError(f"numpy frame has shape {frame.shape}, expected [H, W, C] or [H, W]")
    if not frame.dtype.isnative:
        raise FrameError(
            f"frame has dtype {frame.dtype}, whose bytes are the other way round; convert it: "
            'frame.astype(frame.dtype.newbyteorder("="))'
        )
    if frame.dtype not in (np.uint8, np.float32, np.float16):
        raise FrameError(
            f"frame has dtype {frame.dtype}, expected uint8, float32 or float16; convert it first"
        )
    # PyTorch warns about arrays that are read-only, although frames are only read
    if not (frame.flags.c_contiguous and frame.flags.writeable):
        frame = np.require(frame, requirements=["C", "W"])
    return torch.from_numpy(frame)


def _from_tensor(frame: Tensor, device: torch.device) -> Tensor:
    frame = plain_tensor("frame", frame)
    if frame.ndim == 4 and frame.shape[0] == 1:
        frame = frame[0]
    if frame.ndim != 3:
        raise FrameError(
            f"frame has shape {list(frame.shape)}, expected one stream's [C, H, W] or [1, C, H, W]"
        )
    if frame.device.type not in ("cpu", device.type) or (
        frame.device.type == device.type
        and None not in (frame.device.index, device.index)
        and frame.device.index != device.index
    ):
        raise FrameError(
            f"frame is on {frame.device}, this session runs on {device}; move it with "
            f'.to("{device}") or hand it over on the CPU'
        )
    # a lazily negated frame's memory, which engines read, holds the opposite of its values
    return (frame.detach() if frame.requires_grad else frame).resolve_neg().permute(1, 2, 0)


def warn_range(frame: Tensor, preprocess: Preprocess) -> None:
    """Warn where a float frame lies far outside the range it was said to have."""
    low, high = float(frame.min()), float(frame.max())
    slack = 0.5 * (preprocess.hi - preprocess.lo)
    if low < preprocess.lo - slack or high > preprocess.hi + slack:
        warnings.warn(
            f"frame values run from {low:.3g} to {high:.3g}, the input range is "
            f"{preprocess.lo:g}..{preprocess.hi:g}: pass input_range=(lo, hi) to compile",
            # whoever called `step`, which is wrapped
            stacklevel=4,
        )
