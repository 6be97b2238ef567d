"""Run a network on a video file and compute only what changed: quickstart.py VIDEO."""

import sys

import torch

import torchdelta
from torchdelta.demo import net

with torchdelta.open_source(sys.argv[1]) as video:
    picture = next(video).picture  # uint8 [H, W, 3], RGB
example = torch.from_numpy(picture).permute(2, 0, 1)[None]  # [1, 3, H, W]
# the demo's network, with its weights, stands for yours
fast = torchdelta.compile(net.load_demo_net(), example, **net.DEMO_PREPROCESS)
for r in fast.run(sys.argv[1], record=False):
    scores = r.unwrap()  # [1, 4, H, W], as the network itself gives them
print(f"frame {r.stats.frame}: {r.stats.ms:.1f} ms, MAC share {r.stats.mac_share:.1%}")
print("error", round(torchdelta.relative_error(scores, fast.dense(fast.preprocess(r.frame))), 3))
