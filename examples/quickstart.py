"""Segment a video with the demo's network, computing only what changed from frame to frame."""

import torch

import torchdelta
from torchdelta.demo import net, scene

video = scene.Scene(size=(480, 640), seed=7)  # stands for your video, as the net does for yours
example = torch.from_numpy(video.frame(0)).permute(2, 0, 1)[None]  # [1, 3, 480, 640] uint8
fast = torchdelta.compile(net.load_demo_net(), example, **net.DEMO_PREPROCESS)
for frame in map(video.frame, range(20)):
    scores = fast(frame)  # [1, 4, 480, 640], as the network itself gives them
print(fast.stats)
print("error", round(torchdelta.relative_error(scores, fast.dense(fast.preprocess(frame))), 3))
