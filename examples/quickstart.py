"""Run a network on a video file and compute only what changed: quickstart.py VIDEO."""

import sys

import torch

import torchdelta
from torchdelta.demo import net

with torchdelta.open_source(sys.argv[1]) as video:
    frame = next(video)  # uint8 [H, W, 3], RGB
    example = torch.from_numpy(frame).permute(2, 0, 1)[None]  # [1, 3, H, W]
    # the demo's network, with its weights, stands for yours
    fast = torchdelta.compile(net.load_demo_net(), example, **net.DEMO_PREPROCESS)
    scores = fast(frame)  # [1, 4, H, W], as the network itself gives them
    for frame in video:
        scores = fast(frame)
print(fast.stats)
print("error", round(torchdelta.relative_error(scores, fast.dense(fast.preprocess(frame))), 3))
