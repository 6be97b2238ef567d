"""Compare two checkouts: outputs to the bit and counts of every step, on real clips.

    python tools/yardstick.py OLD NEW --data DATA [--frames N] [--size HxW] [--threads N]
        [--networks resnet18,dncnn17,lite0] [--clips road,bag] [--motions none,given,features]
        [--tolerances 0.04,0] [--engines cpu,torch] [--json FILE]

OLD and NEW are folders with src/torchdelta and, for the cpu engine, a built native library. Each
runs in a process of its own, in this environment, with the same decoded frames, weights and
number of threads. A case is one network, clip, motion, tolerance and engine. It is equal where
every output of every frame has the same bytes, and every step the same number of active pixels
summed over the frames. Cases that differ are run again to say by how much, and the exit code is 1.

"given" motion is measured here, by phase correlation, so that both checkouts are told the same.
"auto" is left out: its decisions use clocks.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

CLIPS = {
    "pedestrians": "static/pedestrians_768x576.avi",
    "room": "static/room_768x432.mp4",
    "road": "static/road_640x352.mp4",
    "juggle": "static/juggle_1280x720.mp4",
    "lab": "static/lab_1920x1080.mp4",
    "rollercoaster": "moving/rollercoaster_pan_960x540.mp4",
    "bag": "moving/bag_handheld_480x360.avi",
    "dashcam": "moving/dashcam_960x540.mp4",
    "bedroom": "moving/bedroom_pan_960x540.mp4",
}
IMAGENET = {"input_range": (0.0, 1.0), "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"input_range": (0.0, 1.0), "mean": (0.5,) * 3, "std": (0.5,) * 3}
GREY = {"input_range": (0.0, 1.0)}
NETWORKS = {"lite0": HALF, "dncnn17": GREY, "resnet18": IMAGENET}


class Case(NamedTuple):
    """One run: all names as on the command line."""

    network: str
    clip: str
    motion: str
    tolerance: float
    engine: str

    def __str__(self) -> str:
        return f"{self.network} {self.clip} {self.motion} {self.tolerance:g} {self.engine}"


# ---------------------------------------------------------------------------- both checkouts


def make_network(name: str, data: Path, prepared: Path) -> Any:
    """Make a network with its weights; those of resnet18 were drawn once, for both checkouts."""
    import timm
    import torch
    from torch import nn

    if name == "resnet18":
        model = timm.create_model("resnet18")
        model.load_state_dict(torch.load(prepared, weights_only=True))
        return model.eval()
    if name == "lite0":
        model = timm.create_model("tf_efficientnet_lite0")
        file = data / "weights/tf_efficientnet_lite0_imagenet_fp16.pth"
        model.load_state_dict(torch.load(file, weights_only=True))  # copies into float32
        return model.eval()

    class DnCNN(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers: list[nn.Module] = []
            for i in range(17):
                layers.append(nn.Conv2d(1 if i == 0 else 64, 1 if i == 16 else 64, 3, padding=1))
                layers.append(nn.ReLU(inplace=True))
            self.model = nn.Sequential(*layers[:-1])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x - self.model(x)

    model = DnCNN()
    model.load_state_dict(torch.load(data / "weights/dncnn17_gray_sigma25.pth", weights_only=True))
    return model.eval()


def read_frames(path: Path, count: int, size: tuple[int, int], grey: bool) -> list[Any]:
    """Decode the first frames of a clip: numpy [h, w, 3] or [h, w, 1] uint8, resized."""
    import av
    import cv2

    frames = []
    with av.open(str(path)) as container:
        for frame in itertools.islice(container.decode(video=0), count):
            picture = cv2.resize(
                frame.to_ndarray(format="rgb24"), size[::-1], interpolation=cv2.INTER_AREA
            )
            frames.append(picture.mean(-1, keepdims=True).astype("uint8") if grey else picture)
    return frames


def shifts(frames: list[Any]) -> list[Any]:
    """Say where each frame's pixels lie in the one before: [3, 3], None for the first."""
    import cv2
    import numpy as np

    grey = [np.float32(frame.mean(-1)) for frame in frames]
    found: list[Any] = [None]
    for before, now in itertools.pairwise(grey):
        (dx, dy), _ = cv2.phaseCorrelate(now, before)
        found.append(np.array([[1.0, 0, dx], [0, 1, dy], [0, 0, 1]]))
    return found


class ByStep:
    """Checkouts whose sessions take frames and homographies by stream in `step`."""

    def __init__(self, fast: Any, case: Case) -> None:
        self._given = case.motion == "given"
        self._session = fast.session(motion=case.motion)

    @staticmethod
    def offered() -> bool:
        """Whether this checkout has that interface."""
        import torchdelta

        opened = getattr(torchdelta, "CompiledModel", None)
        return takes(getattr(opened, "session", None), "motion") and any(
            takes(getattr(getattr(torchdelta, name, None), "step", None), "homographies")
            for name in ("Session", "MovingSession")
        )

    @staticmethod
    def compile(model: Any, example: Any, case: Case) -> Any:
        """Compile a network for frames like the example."""
        import torchdelta

        return torchdelta.compile(
            model, example, tolerance=case.tolerance, engine=case.engine, **NETWORKS[case.network]
        )

    def __call__(self, frame: Any, homography: Any) -> tuple[Any, list[float]]:
        """Run a frame; returns the output, and shares that the frame's statistics give."""
        known = self._given and homography is not None
        given = {"homographies": {"s": homography}} if known else {}
        result = self._session.step({"s": frame}, **given)["s"]
        stats = result.stats
        return result.output, [stats.changed_input, stats.mac_share, float(stats.moved)]

    def counts(self) -> list[tuple[str, int]]:
        """Give each step's operation and the active pixels of all later frames."""
        stats = self._session.stats("s")
        ops = [step.op for step in stats.per_step()]
        return list(zip(ops, stats.active_px, strict=True)) if stats.active_px else []


class ByHandle(ByStep):
    """Checkouts whose sessions give a handle of a stream, which takes its frames."""

    def __init__(self, fast: Any, case: Case) -> None:
        self._given = case.motion == "given"
        self._cam = fast.session(motion=case.motion).stream("s")

    @staticmethod
    def offered() -> bool:
        """Whether this checkout has that interface."""
        import torchdelta

        return hasattr(torchdelta, "StreamHandle")

    def __call__(self, frame: Any, homography: Any) -> tuple[Any, list[float]]:
        """Run a frame; returns the output, and shares that the frame's statistics give."""
        result = self._cam(frame, homography=homography if self._given else None)
        stats = result.stats
        return result.output, [stats.changed_input, stats.mac_share, float(stats.moved)]

    def counts(self) -> list[tuple[str, int]]:
        """Give each step's operation and the active pixels of all later frames."""
        stats = self._cam.stats
        ops = [step.op for step in stats.per_step()]
        return list(zip(ops, stats.active_px, strict=True)) if stats.active_px else []


# the first that a checkout offers runs its cases; another interface needs one more
ADAPTERS = (ByHandle, ByStep)


def takes(function: Any, name: str) -> bool:
    """Whether a function has a parameter of that name."""
    return function is not None and name in inspect.signature(function).parameters


def adapter() -> Any:
    """Choose what runs a case by what this checkout offers."""
    import torchdelta

    where = Path(torchdelta.__file__).resolve().parents[2]
    if where != Path(os.environ["PYTHONPATH"]).resolve().parent:
        raise SystemExit(f"torchdelta of {where} was imported, not the checkout's")
    for one in ADAPTERS:
        if one.offered():
            return one
    names = ", ".join(one.__name__ for one in ADAPTERS)
    raise SystemExit(f"{where}: none of the adapters ({names}) fits its interface; write one more")


def run_cases(
    cases: list[Case], data: Path, prepared: Path, options: Any, keep: Path | None
) -> None:
    """Run cases one by one; print a JSON line for each."""
    import torch
    from torch.utils import _pytree as pytree

    torch.set_num_threads(options.threads)
    sessions, compiled = adapter(), {}
    for case in cases:
        grey = NETWORKS[case.network] is GREY
        frames = read_frames(data / "clips" / CLIPS[case.clip], options.frames, options.hxw, grey)
        key = case.network, case.tolerance, case.engine
        if key not in compiled:
            example = torch.from_numpy(frames[0]).permute(2, 0, 1)[None].contiguous()
            model = make_network(case.network, data, prepared)
            compiled = {key: sessions.compile(model, example, case)}
        session = sessions(compiled[key], case)
        digests, shares, kept = [], [], []
        for frame, homography in zip(frames, shifts(frames), strict=True):
            output, numbers = session(frame, homography)
            leaves = [t.cpu().contiguous() for t in pytree.tree_leaves(output)]
            digests.append(
                hashlib.sha256(b"".join(t.numpy().tobytes() for t in leaves)).hexdigest()
            )
            shares.append(numbers)
            kept.append(torch.cat([t.double().flatten() for t in leaves]) if keep else None)
        if keep:
            torch.save(kept, keep)
        row = {"case": case, "outputs": digests, "shares": shares, "counts": session.counts()}
        print(json.dumps(row), flush=True)


def prepare(data: Path, prepared: Path) -> None:
    """Draw resnet18's weights as every benchmark does."""
    import timm
    import torch

    from torchdelta.capture.prepare import prepare_untrained

    torch.manual_seed(0)
    frames = read_frames(data / "clips" / CLIPS["pedestrians"], 6, (192, 320), False)
    x = torch.stack([torch.from_numpy(f).permute(2, 0, 1).float() / 255 for f in frames])
    mean, std = (torch.tensor(IMAGENET[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    model = prepare_untrained(timm.create_model("resnet18"), (x - mean) / std)
    torch.save(model.state_dict(), prepared)


# ---------------------------------------------------------------------------- the comparison


def child(checkout: Path, options: Any, *arguments: str) -> Iterator[str]:
    """Run this script with one checkout's package; gives the lines that it prints."""
    environment = os.environ | {
        "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": str(options.threads),
    }  # fmt: skip
    command = [
        sys.executable, "-W", "ignore", __file__, "--child", "--data", str(options.data),
        "--frames", str(options.frames), "--size", options.size,
        "--threads", str(options.threads), *arguments,
    ]  # fmt: skip
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from process.stdout
    if process.returncode:
        raise SystemExit(f"{checkout}: exit code {process.returncode}")


def cases_of(options: Any) -> list[Case]:
    """All combinations that were asked for; motion is for clips whose camera moves."""
    return [
        Case(network, clip, motion, float(tolerance), engine)
        # those that share a compiled network follow each other
        for network, tolerance, engine, clip, motion in itertools.product(
            options.networks.split(","), options.tolerances.split(","), options.engines.split(","),
            options.clips.split(","), options.motions.split(","),
        )
        if motion == "none" or CLIPS[clip].startswith("moving/")
    ]  # fmt: skip


def compare(options: Any) -> int:
    """Run both checkouts; returns the number of cases that differ."""
    cases, differing, rows = cases_of(options), 0, []
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "resnet18.pt"
        for _ in child(options.old, options, "--prepare", str(prepared)):
            pass
        given = ("--prepare", str(prepared), "--cases", json.dumps(cases))
        pair = (child(options.old, options, *given), child(options.new, options, *given))
        for case, *lines in zip(cases, *pair, strict=True):
            old, new = map(json.loads, lines)
            wrong = difference(old, new)
            if wrong:
                differing += 1
                wrong += how_far(case, options, Path(folder), prepared)
            rows.append({"case": str(case), "difference": wrong or None})
            share = sum(s[1] for s in new["shares"][1:]) / max(1, len(new["shares"]) - 1)
            print(f"{case}: {wrong or 'equal'} (MAC share {share:.3f})", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"{len(cases) - differing} of {len(cases)} cases equal to the bit")
    return differing


def difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Say in what two runs of a case differ; nothing where they are equal."""
    found = []
    frames = [n for n, pair in enumerate(zip(old["outputs"], new["outputs"], strict=True))
              if pair[0] != pair[1]]  # fmt: skip
    if frames:
        found.append(f"outputs of {len(frames)} frames differ, first of frame {frames[0]}")
    if old["shares"] != new["shares"]:
        found.append("frames' shares differ")
    if [n for _, n in old["counts"]] != [n for _, n in new["counts"]]:
        steps = [n for n, pair in enumerate(zip(old["counts"], new["counts"], strict=False))
                 if pair[0] != pair[1]]  # fmt: skip
        where = f"first of step {steps[0]}" if steps else "in number"
        found.append(f"counts of {len(steps)} steps differ, {where}")
    return ", ".join(found)


def how_far(case: Case, options: Any, folder: Path, prepared: Path) -> str:
    """Run a case again in both checkouts; says how far its outputs are apart."""
    import torch

    outputs = []
    for name, checkout in (("old", options.old), ("new", options.new)):
        keep = folder / f"{name}.pt"
        list(child(checkout, options, "--prepare", str(prepared), "--cases", json.dumps([case]),
                   "--keep", str(keep)))  # fmt: skip
        outputs.append(torch.load(keep))
    errors = [float((a - b).norm() / (a.norm() or 1)) for a, b in zip(*outputs, strict=True)]
    return f"; outputs differ by {max(errors):.2g} at most (relative L2)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path, nargs="?")
    parser.add_argument("new", type=Path, nargs="?")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--size", default="192x320")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--clips", default=",".join(CLIPS))
    parser.add_argument("--motions", default="none,given,features")
    parser.add_argument("--tolerances", default="0.04,0")
    parser.add_argument("--engines", default="cpu,torch")
    parser.add_argument("--json", type=Path)
    for hidden in ("--child", "--prepare", "--cases", "--keep"):
        action: Any = {"action": "store_true"} if hidden == "--child" else {}
        parser.add_argument(hidden, help=argparse.SUPPRESS, **action)
    options = parser.parse_args()
    options.hxw = tuple(map(int, options.size.split("x")))
    if not options.child:
        if options.old is None or options.new is None:
            parser.error("name two checkouts: OLD NEW")
        sys.exit(1 if compare(options) else 0)
    prepared = Path(options.prepare)
    if not options.cases:
        prepare(options.data, prepared)
        return
    cases = [Case(*case) for case in json.loads(options.cases)]
    run_cases(cases, options.data, prepared, options, Path(options.keep) if options.keep else None)


if __name__ == "__main__":
    main()
