"""`torchdelta.compile`: from a model to something that runs on frames."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack, overload

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchdelta.apart import apart, default_float32
from torchdelta.arguments import finite, pair, shown
from torchdelta.capture.export import CAPTURES, differing_parameters, export, prepare_copy, twin
from torchdelta.capture.purity import check_stateless
from torchdelta.capture.suited import check_capturable, run_model, unwrapped
from torchdelta.engines import Engine, choose, make
from torchdelta.engines.torch_engine import ieee_float32, to_layout
from torchdelta.errors import CaptureError, FrameError
from torchdelta.example import check_example, make_preprocess
from torchdelta.motion.homography import check_homography
from torchdelta.ops.base import Size
from torchdelta.ops.gate import DEFAULT_TOLERANCE
from torchdelta.ops.preprocess import Preprocess
from torchdelta.plan import Plan, build, explain
from torchdelta.report.plot import plot
from torchdelta.running import Several, play
from torchdelta.runtime.frames import (
    Frame,
    check_frame,
    picture_of,
    plain_tensor,
)
from torchdelta.runtime.once import Once
from torchdelta.runtime.placement import Motion
from torchdelta.runtime.profile import Profile
from torchdelta.runtime.result import Result
from torchdelta.runtime.session import Session
from torchdelta.runtime.stats import StreamStats
from torchdelta.runtime.unpicklable import Unpicklable
from torchdelta.runtime.windows import Border
from torchdelta.stages import stage
from torchdelta.tasks import Tail, Task, make_tail
from torchdelta.verify import check_plan, model_results, relative_error

__all__ = ["CompiledModel", "compile", "relative_error"]

DTYPES = {
    "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32,
}  # fmt: skip
# plans that are kept, the example's size's among them
MAX_PLANS = 8


class SessionOptions(TypedDict, total=False):
    """Options of `CompiledModel.session` that `CompiledModel.run` passes on."""

    motion: Motion
    border: Border
    tolerance: float | None
    profile: Profile | str | Path | None
    grain: int | None
    views: bool
    timed: bool


@apart
def compile(
    model: nn.Module,
    example: Tensor,
    *,
    tolerance: float = DEFAULT_TOLERANCE,
    engine: str = "auto",
    dtype: torch.dtype | str | None = None,
    profile: Profile | str | Path | None = None,
    fixed_size: bool = False,
    input_range: tuple[float, float] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    color: str = "rgb",
    task: Task | None = None,
    labels: Sequence[str] | None = None,
) -> CompiledModel:
    """Make a model run on video and compute only what changed from frame to frame.

    model:       any nn.Module whose forward takes one tensor [N, C, H, W]; left untouched
    example:     [N, C, H, W], a frame as it will come: uint8, or float in `input_range`
    tolerance:   the one knob: 0 is exact, 0.04 the default, larger is faster and coarser
    engine:      "auto" or the name of an engine (`torchdelta env` lists them)
    dtype:       compute dtype, torch.float32 (default) / float16 / bfloat16, or "fp32" …; "tf32":
                 float32 whose products are TF32 (the triton engine)
    profile:     a `Profile` or the path of one: multipliers and scales of the gates
    fixed_size:  True: frames of another size are refused; False: each size gets a plan
    input_range: (lo, hi) of a float frame's values; uint8 0..255 is mapped to it. Default: what
                 the example looks like, with a note in `explain()`
    mean, std:   per channel; the model gets (frame - mean) / std
    color:       "bgr" where the model wants BGR; frames come in RGB
    task:        what the output means, for `Result.plot`: "classify", "segment" or "image", see
                 `tasks.Tail`; None: that is not known
    labels:      names of the classes, with "classify" and "segment"

    Returns a `CompiledModel`: call it with frames [N, C, H, W], whose rows are N cameras.
    Raises: CaptureError with all reasons where the model cannot be captured, or mixes streams;
    FrameError for a bad example; ProfileError; EngineError.
    """
    if not isinstance(model, nn.Module):
        raise CaptureError(f"model is a {type(model).__name__}, expected a torch.nn.Module")
    model = unwrapped(model)
    check_capturable(model)
    tolerance = finite("tolerance", tolerance, least=0)
    example, device = check_example(model, example)
    tf32 = dtype == "tf32"
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
        dtype = DTYPES[dtype]
    elif dtype not in (None, *DTYPES.values()):
        raise ValueError(f"dtype is {dtype}, expected float32, float16 or bfloat16")
    if isinstance(profile, (str, Path)):
        profile = Profile.load(profile)
    preprocess, notes = make_preprocess(example, input_range, mean, std, color)
    tail = make_tail(task, labels, example.shape[1], preprocess)
    return CompiledModel(
        model, example, device, preprocess, notes, tolerance, engine,
        dtype or torch.float32, profile or Profile(), fixed_size, tf32=tf32, tail=tail,
    )  # fmt: skip


class CompiledModel(Unpicklable):
    """A model ready for video; make one with `torchdelta.compile`.

    Call it with a frame [N, C, H, W] whose rows are N different cameras (not successive frames).
    Attributes: plan (of the example's size), engine and engine_reason, device, dtype, tf32 (whether
    float32 is multiplied in TF32), tolerance, tail (what the output means, None: not known).
    """

    instead = (
        "it belongs to this process and its devices; save the model and the profile "
        "(`session.stream(name).profile().save(path)`), and compile again where they are loaded"
    )

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        device: torch.device,
        preprocess: Preprocess,
        notes: tuple[str, ...],
        tolerance: float,
        engine: str,
        dtype: torch.dtype,
        profile: Profile,
        fixed_size: bool,
        *,
        tf32: bool = False,
        tail: Tail | None = None,
    ) -> None:
        self.device, self.dtype, self.tolerance = device, dtype, tolerance
        self.fixed_size, self.tf32, self.tail = fixed_size, tf32, tail
        self._profile, self._preprocess, self._notes = profile, preprocess, notes
        self._engine_type, self.engine_reason = choose(engine, device, dtype, tf32=tf32)
        self.engine = self._engine_type.name
        # never run itself: captures and `dense` run copies of it
        self._model = prepare_copy(model)
        self._dense: nn.Module | None = None
        self._making_dense = threading.Lock()
        self._size = (example.shape[2], example.shape[3])
        first = self._make_engine(example, first=True)
        self.plan = first.plan
        profile.check(self.plan)
        self._engines = Once(self._engine_for, MAX_PLANS, {self._size: first})
        # of calls: one at a time, since they share a session
        self._calling = threading.Lock()
        self._called: Session | None = None

    def _engine_at(self, size: Size) -> Engine:
        """Find or make the engine for an input size; only who asks for a new one waits for it."""
        if self.fixed_size and size != self._size:
            raise FrameError(
                f"frame is {size[0]}x{size[1]}, this model was compiled with fixed_size=True "
                f"for {self._size[0]}x{self._size[1]}"
            )
        return self._engines.get(size)

    def _engine_for(self, size: Size) -> Engine:
        generator = torch.Generator().manual_seed(0)
        shape = (2, self.plan.shape[0], *size)
        return self._make_engine(
            torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        )

    def _make_engine(self, example: Tensor, *, first: bool = False) -> Engine:
        """Make a plan for frames like the example [N, C, H, W], and what runs it."""
        with default_float32():
            with CAPTURES:
                h, w = example.shape[2:]
                stage(f"capturing the network at {h}x{w}")
                plan = self._make_plan(example, first=first)
            stage(f"packing its weights for the {self.engine} engine")
            return make(self._engine_type, plan, self.device, self.dtype, tf32=self.tf32)

    def _make_plan(self, example: Tensor, *, first: bool) -> Plan:
        """Capture, build and check a plan for frames like the example [N, C, H, W].

        first: look for state that the model keeps, too; it does or does not at every size
        """
        example = example.cpu()
        rows = example[:2] if len(example) > 1 else torch.cat([example, _another(example)])
        x = torch.cat([self._input(row.permute(1, 2, 0), torch.float32) for row in rows])
        if first:
            alone = self._settle(x[:1])
        # exporting swaps the parameters of the modules for a while
        model = twin(self._model)
        if not first:
            alone = run_model(model, x[:1])
        expected = model_results(model, x, alone)
        captured = export(model, x[: expected.streams])

        def made(weights: torch.dtype) -> Plan:
            return build(
                captured.program, self._preprocess, self._notes + captured.notes,
                per_stream=expected.per_stream, weight_dtype=weights,
            )  # fmt: skip

        plan = made(torch.float32)
        stage("checking the plan against the model")
        check_plan(model, plan, captured, rows, x, expected, lambda: made(torch.float64))
        return plan

    def _settle(self, frame: Tensor) -> Any:
        """Refuse a model that keeps state from frame to frame; give its result for a first frame.

        Weights that it rewrites in its first frame (branches that it merges) are so from here on.
        """
        ran = copy.deepcopy(self._model)
        alone = run_model(ran, frame)
        rewritten = differing_parameters(self._model, ran)
        fresh = copy.deepcopy if rewritten else twin
        note = check_stateless(lambda: fresh(self._model), frame, alone)
        self._notes += (note,) if note else ()
        if rewritten:
            self._model = ran
            self._notes += (
                f"the model rewrites {', '.join(rewritten)} in its first frame; the plan has them "
                "as they are then",
            )
        return alone

    def _input(self, frame: Tensor, dtype: torch.dtype) -> Tensor:
        """Bring one frame [H, W, C] to the model's [1, C, H, W]."""
        return self._preprocess.apply(frame, dtype).permute(2, 0, 1).unsqueeze(0).contiguous()

    @apart
    def __call__(
        self,
        frame: Frame,
        *,
        views: bool = False,
        homography: Any = None,
        relative_to: str = "previous",
    ) -> Any:
        """Run one frame of each of N cameras; returns the same structure as model(frame).

        frame: [N, C, H, W] tensor (uint8, or float in the input range); row n is camera n, in
               every call. A numpy array [H, W, C], or a source's `VideoFrame`, stands for one
               camera
        views: True returns views of the state where N is 1, valid until the next call, instead of
               copies
        homography: how the cameras have moved: [3, 3], or N of them, pixel centres (x, y, 1) of
               each frame to its camera's previous one, None in a list where that is not known;
               anything for a first frame. The outputs are those of windows larger than the frame:
               see `Session.step`, whose results lead back. A call without is one of fixed cameras
        relative_to: "previous" or "reference", see `Session.step`
        A call that is not like the one before begins anew: with another number of rows, another
        size (a warning says so), with homographies or without.
        Raises: FrameError where any row or homography does not fit; nothing has run then.
        """
        rows = self._rows(frame)
        size = tuple(rows[0].shape[:2] if isinstance(rows[0], np.ndarray) else rows[0].shape[1:])
        engine = self._engine_at((int(size[0]), int(size[1])))
        for n, row in enumerate(rows):
            try:
                check_frame(row, engine.plan, self.device, self.dtype)
            except FrameError as error:
                raise FrameError(f"row {n}: {error}") from None
        given, spare = None, None
        if homography is not None:
            given = _homographies(homography, len(rows), engine.plan.size)
            if not _goes_on(self._called, engine.plan, len(rows), followed=True):
                # it may have to capture the network, for which no other call should wait
                spare = self._open_followed(engine.plan, len(rows))
        with self._calling:
            session = self._session_for(engine, len(rows), spare, followed=given is not None)
            frames = {str(n): row for n, row in enumerate(rows)}
            known = {str(n): one for n, one in enumerate(given or ()) if one is not None}
            results = session.step(frames, homographies=known, relative_to=relative_to)
            outputs = [results[stream].unwrap() for stream in frames]
            return _stack(outputs, results["0"].plan, views)

    def _session_for(
        self, engine: Engine, rows: int, spare: Session | None, *, followed: bool
    ) -> Session:
        """Give the session that calls go on in; a call that is not like the last begins anew."""
        before = self._called
        if before is not None and _goes_on(before, engine.plan, rows, followed=followed):
            return before
        (h, w), (h0, w0) = engine.plan.size, (before or engine).plan.size
        if (h, w) != (h0, w0):
            warnings.warn(
                f"frames are {h}x{w} from here on, no longer {h0}x{w0}: what was kept of those is "
                "dropped, and the next frame is computed whole",
                # the caller of `__call__`, which is wrapped
                stacklevel=4,
            )
        # the last one's memory is free before the next one takes some
        before = self._called = None
        if followed:
            self._called = spare or self._open_followed(engine.plan, rows)
        else:
            self._called = Session(engine, rows, self.tolerance, self._profile, views=True)
        return self._called

    def _open_followed(self, plan: Plan, rows: int) -> Session:
        return self.session(rows, size=plan.size, motion="given", views=True)

    def _rows(self, frame: Any) -> list[Any]:
        frame = picture_of(frame)
        if isinstance(frame, np.ndarray):
            if frame.ndim not in (2, 3) or 0 in frame.shape:
                raise FrameError(f"numpy frame has shape {frame.shape}, expected [H, W, C]")
            return [frame]
        if isinstance(frame, Tensor):
            frame = plain_tensor("frame", frame)
        if not isinstance(frame, Tensor) or frame.ndim != 4 or 0 in frame.shape:
            got = list(frame.shape) if isinstance(frame, Tensor) else type(frame).__name__
            raise FrameError(f"frame is {got}, expected a tensor [N, C, H, W]")
        return list(frame)

    @overload
    def run(
        self, sources: Several, *, size: Size | None = ..., limit: int | None = ...,
        record: bool | None = ..., progress: bool = ..., skip_damaged: bool = ...,
        **options: Unpack[SessionOptions],
    ) -> Iterator[tuple[str, Result]]: ...  # fmt: skip

    @overload
    def run(
        self, sources: Any, *, size: Size | None = ..., limit: int | None = ...,
        record: bool | None = ..., progress: bool = ..., skip_damaged: bool = ...,
        **options: Unpack[SessionOptions],
    ) -> Iterator[Result]: ...  # fmt: skip

    def run(
        self,
        sources: Any,
        *,
        size: Size | None = None,
        limit: int | None = None,
        record: bool | None = None,
        progress: bool = False,
        skip_damaged: bool = False,
        **options: Unpack[SessionOptions],
    ) -> Iterator[Any]:
        """Run all frames of a source, or of several as streams of one session.

        sources: what `open_source` takes; an open `Source`; or frames: a numpy array
                 [T, H, W, C], a tensor [T, C, H, W], a list or whatever else gives one frame after
                 the other. Several: a list of these, or a dict by name
        size:    (h, w) that all frames are resized to; default: as they come, or what a model
                 compiled with fixed_size takes. Each size that comes gets a plan
        limit:   frames of each source at most
        record:  keep active sets, which `Result.plot` draws where the task is not known; default:
                 where it is not
        progress: show a bar on standard error, and there what sources and sessions have to say;
                 else that is warned of
        skip_damaged: as for `open_source`
        options: of `session`
        returns: the results in order, of several sources (name, result). A frame that does not fit
                 is refused (`Result.error`, FrameError); a source that turns out to be damaged ends
                 with a result whose error says so (SourceError), the others go on. What is opened
                 here is closed when the iteration ends, also by a break or an exception
        Raises: SourceError where there is nothing to read, FrameError where sources have different
        sizes and none was given; what `session` raises. All at the call.
        """
        return play(
            self, sources, size=size, limit=limit, record=record, progress=progress,
            skip_damaged=skip_damaged, options=dict(options),
        )  # fmt: skip

    @apart
    def session(
        self,
        slots: int = 1,
        *,
        size: tuple[int, int] | None = None,
        motion: Motion = "none",
        border: Border = "keep",
        tolerance: float | None = None,
        profile: Profile | str | Path | None = None,
        grain: int | None = None,
        views: bool = False,
        timed: bool = False,
    ) -> Session:
        """Open a session for several streams, with a state of its own.

        slots:  how many streams fit;  size: (h, w) of the frames, default the example's
        motion: of the streams that join. "none": cameras are fixed. "features", "codec",
                "translation": their motion is estimated and followed; "given": homographies come
                with the frames; "auto": estimated and followed while that pays.
                `StreamHandle.set_motion` changes it
        border: of followed cameras: "keep" or "exact", see `Window`
        tolerance: of the streams that join; default: the model's.
                `StreamHandle.set_tolerance` changes it
        profile: a `Profile` or the path of one; default: the model's
        grain:  side in pixels of the cells in which the input gate counts; 1: 3x3 pixels decide,
                so that the smallest things are seen; None: what suits the network and the camera
        views:  outputs are views of the state, valid until the stream's next frame
        timed:  measure each step, for `stats().per_step()`
        Raises: ValueError for unknown names, or where windows are not possible; StreamError;
        ProfileError.
        """
        size = self._size if size is None else pair("size", size, "(h, w)", least=1)
        tolerance = self.tolerance if tolerance is None else finite("tolerance", tolerance, least=0)
        profile = self._profile if profile is None else _take_profile(profile, self.plan)
        if self.fixed_size and motion != "none":
            raise ValueError(
                "cameras are followed on windows larger than the frame, and this model was "
                "compiled with fixed_size=True; compile it without"
            )
        return Session(
            self._engine_at(size), slots, tolerance, profile, engine_at=self._engine_at,
            motion=motion, border=border, grain=grain, views=views, timed=timed, draw=self._draw,
        )  # fmt: skip

    def _draw(self, result: Result) -> np.ndarray:
        return plot(result, self.tail, self._preprocess)

    @property
    @apart
    def stats(self) -> StreamStats:
        """Statistics of the frames this model was called with, since it last began anew."""
        session = self._called
        return StreamStats(self.plan) if session is None else session.stats

    @apart
    def explain(self, *, moves: bool = False) -> str:
        """Return the plan as a table: step, shape, MACs, state, sparse or dense and why; a verdict.

        moves: with what each step does when a moving camera's window moves
        """
        engine = self._engine_at(self._size)
        name = f"{self.engine} ({self.engine_reason})" + (", products in tf32" if self.tf32 else "")
        return explain(
            self.plan, self.dtype, name, engine.foreign_steps(), engine.whole_steps(),
            engine.notes(), moves=moves,
        )  # fmt: skip

    @apart
    def preprocess(self, frame: Frame) -> Tensor:
        """Give one frame as the model sees it: [1, C, H, W] in the compute dtype."""
        plan = self._engine_at(_frame_size(frame)).plan
        checked = check_frame(frame, plan, self.device, self.dtype)
        return self._input(checked.to(self.device), self.dtype)

    @apart
    def dense(self, x: Tensor) -> Any:
        """Run the original model, whole and eager, on an input as the model sees it.

        float32 is IEEE float32, on a GPU too.
        """
        with self._making_dense:
            if self._dense is None:
                dense = copy.deepcopy(self._model)
                self._dense = to_layout(dense.to(self.device, self.dtype), torch.channels_last)
        with default_float32(), ieee_float32(self.device):
            # a copy: the model may write to its input
            return self._dense(x.clone(memory_format=torch.channels_last))


def _take_profile(given: Profile | str | Path, plan: Plan) -> Profile:
    """Read a profile where its path is given. Raises: ProfileError where it does not fit."""
    profile = given if isinstance(given, Profile) else Profile.load(given)
    profile.check(plan)
    return profile


def _homographies(given: Any, rows: int, size: tuple[int, int]) -> list[Any]:
    """Check the homographies of a call: one for each row, None where none is known.

    Raises: FrameError.
    """
    if isinstance(given, (list, tuple)) and any(one is None for one in given):
        found, shape = list(given), [len(given)]
    else:
        try:
            shape = list(np.shape(given))
        except ValueError:
            raise FrameError("the homographies differ in shape, expected 3x3 each") from None
        found = [given] if len(shape) == 2 else list(given) if len(shape) == 3 else []
    if len(found) != rows:
        raise FrameError(
            f"homography is {shape} for {rows} frames, expected [{rows}, 3, 3], or [3, 3] for a "
            "single camera"
        )
    for n, one in enumerate(found):
        try:
            if one is not None:
                check_homography(one, size)
        except FrameError as error:
            raise FrameError(f"row {n}: {error}") from None
    return found


def _another(frame: Tensor) -> Tensor:
    """Make another frame of one [1, C, H, W]: upside down and of half the contrast.

    A frame of the same mean and deviation would not show that a model takes them over a batch.
    """
    low = frame.min()
    upside_down = frame.flip(2) - low
    return low + (upside_down / 2 if frame.is_floating_point() else upside_down // 2)


def _goes_on(session: Session | None, plan: Plan, rows: int, *, followed: bool) -> bool:
    """Whether frames like these go on in a session."""
    return (
        session is not None
        and (session.plan.size, session.slots) == (plan.size, rows)
        and session.motion == ("given" if followed else "none")
    )


def _frame_size(frame: Any) -> tuple[int, int]:
    frame = picture_of(frame)
    if isinstance(frame, Tensor):
        frame = plain_tensor("frame", frame)
    if not isinstance(frame, (np.ndarray, Tensor)) or frame.ndim < 2 or 0 in frame.shape:
        raise FrameError(
            f"frame is {shown(frame)}, expected a numpy array [H, W, C] or a tensor [C, H, W]"
        )
    shape = tuple(frame.shape)
    h, w = shape[:2] if isinstance(frame, np.ndarray) else shape[-2:]
    return int(h), int(w)


def _stack(outputs: list[Any], plan: Plan, views: bool) -> Any:
    """Join the results of N streams along the batch axis; a single stream's views stay views."""
    trees = [pytree.tree_leaves(o) for o in outputs]
    leaves = []
    for i, (parts, whole) in enumerate(
        zip(zip(*trees, strict=True), plan.output_shapes, strict=True)
    ):
        single = whole is None and i not in plan.repeated
        if single or (len(parts) == 1 and views):
            leaves.append(parts[0])
        else:
            leaves.append(torch.cat(parts))
    return pytree.tree_unflatten(leaves, plan.out_spec)
