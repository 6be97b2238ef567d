"""Train the demo's network on the demo's scene; write its weights and the figures beside them.

python tools/train_demo_net.py            # at most about 20 minutes on one core
python tools/train_demo_net.py --evaluate # measure the committed weights anew
"""

import argparse
import json
import math
import platform
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchdelta.demo import DEMO_SEED, TRAIN_SEEDS
from torchdelta.demo.net import WEIGHTS_PATH, DemoNet, load_demo_net, normalise
from torchdelta.demo.scene import CLASSES, Scene
from torchdelta.demo.score import Agreement

FIGURES_PATH = WEIGHTS_PATH.with_suffix(".json")
CROP_PX, BATCH = 160, 8
LIVE_SCENES, STEPS_PER_SCENE = 32, 3
EVAL_SEEDS = range(20)


class Frames:
    """Random crops from a changing set of scenes, none with a seed below TRAIN_SEEDS."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.next_seed = TRAIN_SEEDS
        self._scenes = [self._new_scene() for _ in range(LIVE_SCENES)]

    def _new_scene(self) -> Scene:
        pick = self._random
        h = pick.randrange(CROP_PX, 561, 16)
        size = (h, max(CROP_PX, round(h * pick.uniform(0.75, 1.8))))
        seed, self.next_seed = self.next_seed, self.next_seed + 1
        assert seed >= TRAIN_SEEDS > DEMO_SEED
        return Scene(
            size,
            seed,
            pick.randint(4, 10),
            noise=pick.choice([0, 1, 2, 2, 3]),
            pan=pick.random() < 0.4,
        )

    def renew(self) -> None:
        self._scenes[self._random.randrange(LIVE_SCENES)] = self._new_scene()

    def batch(self, count: int, crop: int) -> tuple[Tensor, Tensor]:
        """Return pictures [count, crop, crop, 3] uint8 and true classes [count, crop, crop]."""
        pick, pictures, classes = self._random, [], []
        for _ in range(count):
            scene, frame = pick.choice(self._scenes), pick.randrange(100_000)
            y, x = (pick.randint(0, length - crop) for length in scene.size)
            area = np.s_[y : y + crop, x : x + crop]
            flip = slice(None, None, pick.choice([1, -1]))
            pictures.append(scene.frame(frame)[area][:, flip])
            classes.append(scene.mask(frame)[area][:, flip])
        return torch.from_numpy(np.stack(pictures)), torch.from_numpy(np.stack(classes)).long()


def loss_of(logits: Tensor, classes: Tensor) -> Tensor:
    """Cross entropy plus what the soft Dice overlap of each class lacks to 1."""
    share = logits.softmax(1)
    truth = F.one_hot(classes, logits.shape[1]).permute(0, 3, 1, 2).float()
    both, sum_ = (share * truth).sum((0, 2, 3)), (share + truth).sum((0, 2, 3))
    dice = ((2 * both + 1) / (sum_ + 1))[1:].mean()
    return F.cross_entropy(logits, classes) + 0.5 * (1 - dice)


def train(net: DemoNet, frames: Frames, steps: int, minutes: float) -> dict[str, float]:
    """Train in place; stops early, with the learning rate run down, when time is up."""
    decay = [p for p in net.parameters() if p.ndim > 1]
    rest = [p for p in net.parameters() if p.ndim == 1]
    groups = [{"params": decay, "weight_decay": 1e-2}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3)
    start, mean_loss, step = time.monotonic(), 0.0, 0
    while True:
        progress = max(step / steps, (time.monotonic() - start) / (60 * minutes))
        if progress >= 1:
            break
        warm = min(1.0, (step + 1) / 200)
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * warm * (0.5 + 0.5 * math.cos(math.pi * progress))
        if step % STEPS_PER_SCENE == 0:
            frames.renew()
        pictures, classes = frames.batch(BATCH, CROP_PX)
        x = normalise(pictures).contiguous(memory_format=torch.channels_last)
        loss = loss_of(net(x), classes)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        mean_loss += (float(loss.detach()) - mean_loss) / min(step + 1, 200)
        step += 1
        if step % 200 == 0:
            print(
                f"step {step}  loss {mean_loss:.4f}  {time.monotonic() - start:.0f} s", flush=True
            )
    return {"steps": step, "loss": round(mean_loss, 5), "train_s": round(time.monotonic() - start)}


@torch.no_grad()
def settle_statistics(net: DemoNet, frames: Frames, batches: int = 100) -> None:
    """Replace the running batch-norm statistics by plain means over frames, weights fixed."""
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    net.train()
    for _ in range(batches):
        frames.renew()
        net(normalise(frames.batch(BATCH, CROP_PX)[0]))
    net.eval()


@torch.no_grad()
def evaluate(net: nn.Module, size: tuple[int, int], pan: bool) -> dict[str, object]:
    """Return the figures of held-out scenes: IoU by class, and the worst scene's mean."""
    total, worst = Agreement(len(CLASSES)), 1.0
    for seed in EVAL_SEEDS:
        scene, own = Scene(size, seed, pan=pan), Agreement(len(CLASSES))
        for frame in range(0, 200, 25):
            found = net(normalise(torch.from_numpy(scene.frame(frame))[None])).argmax(1)[0].numpy()
            total.add(scene.mask(frame), found)
            own.add(scene.mask(frame), found)
        worst = min(worst, own.mean_iou())
    return {
        "size": list(size),
        "pan": pan,
        "mean_iou": round(total.mean_iou(), 4),
        "worst_scene_mean_iou": round(worst, 4),
        "iou": {name: round(v, 4) for name, v in zip(CLASSES, total.iou(), strict=True)},
    }


def evaluations(net: nn.Module) -> list[dict[str, object]]:
    cases = [((320, 480), False), ((320, 480), True), ((240, 320), False), ((480, 640), False)]
    figures = []
    for size, pan in cases:
        figures.append(evaluate(net, size, pan))
        print(json.dumps(figures[-1]), flush=True)
    return figures


def statistics_of(net: nn.Module) -> dict[str, float]:
    """Return how far batch norm's numbers range; a tiny variance would be a dead channel."""
    state = net.state_dict()
    names = [n.removesuffix("running_var") for n in state if n.endswith("running_var")]
    variance = torch.cat([state[f"{n}running_var"] for n in names])
    gain = torch.cat([state[f"{n}weight"] for n in names]) / (variance + 1e-5).sqrt()
    return {
        "smallest_variance": float(f"{variance.min():.3g}"),
        "largest_variance": float(f"{variance.max():.3g}"),
        "largest_gain": float(f"{gain.abs().max():.3g}"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=WEIGHTS_PATH)
    parser.add_argument("--evaluate", action="store_true", help="evaluate only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.evaluate:
        figures = json.loads(FIGURES_PATH.read_text()) | {
            "evaluation": evaluations(load_demo_net())
        }
        FIGURES_PATH.write_text(json.dumps(figures, indent=2) + "\n")
        return

    torch.manual_seed(options.seed)
    net, frames = DemoNet().to(memory_format=torch.channels_last).train(), Frames(options.seed)
    figures = {"training": train(net, frames, options.steps, options.minutes)}
    settle_statistics(net, frames)
    halves = {
        name: value.half().contiguous() if value.is_floating_point() else value
        for name, value in net.state_dict().items()
    }
    torch.save(halves, options.out)

    # Evaluated as loaded: rounded to half precision.
    stored = DemoNet().eval()
    stored.load_state_dict(torch.load(options.out, weights_only=True))
    figures |= {
        "seed": options.seed,
        "train_seeds": [TRAIN_SEEDS, frames.next_seed - 1],
        "eval_seeds": [EVAL_SEEDS.start, EVAL_SEEDS.stop - 1],
        "crop_px": CROP_PX,
        "batch": BATCH,
        "params": sum(p.numel() for p in stored.parameters()),
        "weights_bytes": options.out.stat().st_size,
        "batch_norm": statistics_of(stored),
        "evaluation": evaluations(stored),
        "device": f"cpu ({platform.machine()}), 1 thread",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }
    path = FIGURES_PATH if options.out == WEIGHTS_PATH else options.out.with_suffix(".json")
    path.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
