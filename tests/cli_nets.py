"""Networks, pictures and calls for the tests of the command line."""

from __future__ import annotations

import contextlib
import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from support import threads
from torchdelta.cli.app import app
from torchdelta.video.sink import VideoWriter

H, W = 48, 64

NETS = """
import torch
from torch import nn


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, 1, 1)

    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else x


def branches():
    return Branches()


def net(c_in, c_out, stride=1):
    return nn.Sequential(
        nn.Conv2d(c_in, 8, 3, stride, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, c_out, 3, 1, 1)
    )


def segment():
    return net(3, 3)


def segment_small():
    return net(3, 3, stride=2)


def one_class():
    return net(3, 1)


def denoise():
    return net(1, 1)
denoise.preprocess = dict(channels=1, input_range=(0, 1))


def picture():
    return net(3, 3)
picture.preprocess = dict(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2), color="bgr")


def classify():
    return nn.Sequential(net(3, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten())
classify.preprocess = dict(labels=["ant", "bee", "cat", "dog", "elk"])


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = net(3, 4)

    def forward(self, x):
        x = self.body(x)
        return {"aux": x[:, :1], "out": x, "pair": (x.mean((2, 3)), x * 2)}
"""


@contextlib.contextmanager
def entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a folder the current one, with a module of small networks in it; one thread."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(textwrap.dedent(NETS))
    with threads(1):
        yield tmp_path
    sys.modules.pop("nets", None)


def frame(index: int, h: int = H, w: int = W) -> np.ndarray:
    """A still texture with a bright square that moves two pixels a frame: [h, w, 3] uint8."""
    rng = np.random.default_rng(3)
    coarse = rng.integers(40, 200, (h // 8 + 1, w // 8 + 1, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (w, h), interpolation=cv2.INTER_LINEAR)
    left = (2 * index) % (w - 16)
    picture[h // 3 : h // 3 + 12, left : left + 12] = (250, 240, 20)
    return picture


def images(path: Path, count: int, h: int = H, w: int = W) -> str:
    path.mkdir()
    for i in range(count):
        cv2.imwrite(str(path / f"{i:03}.png"), frame(i, h, w)[..., ::-1])
    return str(path)


def clip(path: Path, count: int, h: int = H, w: int = W) -> str:
    with VideoWriter(path, 10, (h, w)) as writer:
        for i in range(count):
            writer.write(frame(i, h, w))
    return str(path)


def call(*args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(args))
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    if code:
        assert "Traceback" not in result.output
    return result


def records(path: str = "out.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def pictures(path: str | Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        return [f.to_ndarray(format="rgb24") for f in container.decode(stream)]
