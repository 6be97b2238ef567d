"""A small synthetic video with ground truth: things move about a square, seen from above.

Every frame is a function of the seed, the size and its number alone, so frames come in any order
and are the same on every machine.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from torchdelta.demo.ground import Dice, Picture, paint_ground
from torchdelta.errors import FrameError

CLASSES = ("background", "disc", "box", "other")
MIN_SIZE_PX = 32

# Everything rests for the last 16 of every 120 frames: a fixed camera then sees only noise.
_CYCLE, _BUSY, _CYCLE_OFFSET = 120, 104, 40
# Positions are kept in sixteenths of a pixel, so that libm's last bit cannot reach a picture.
_SUBPIXEL = 16


@dataclass(frozen=True)
class _Thing:
    """One moving thing; lengths in pixels, time in ticks of the scene's clock."""

    kind: int  # index into CLASSES
    shape: str
    half_px: tuple[float, float]  # half extents along its own axes
    colours: tuple[Picture, Picture]
    texture: str
    texture_px: float
    start_px: tuple[float, float]  # x, y
    speed_px: tuple[float, float]  # x, y per tick
    weave: tuple[float, float, float]  # amplitude in pixels, ticks of one wave, phase
    turn: tuple[float, float]  # angle at the start, radians per tick
    pause: tuple[int, int, int]  # period, ticks it moves in each period, offset

    @property
    def reach_px(self) -> int:
        return math.ceil(math.hypot(*self.half_px)) + 2


@dataclass(frozen=True)
class _Sprite:
    """A thing as one frame shows it, cut to the frame."""

    thing: _Thing
    top: int
    left: int
    cover: Picture  # [h, w] 0..1, share of each pixel that the thing covers
    depth: Picture  # [h, w] signed distance to its outline in pixels, negative inside
    along: tuple[Picture, Picture]  # [h, w] each: coordinates along the thing's own axes
    light: Picture  # [h, w] brightness of its surface


def _reflect(value: float, low: float, high: float) -> float:
    """Fold a straight path into [low, high], as a ball between two walls."""
    span = high - low
    folded = (value - low) % (2 * span)
    return low + (folded if folded <= span else 2 * span - folded)


def _snap(value: float) -> float:
    return round(value * _SUBPIXEL) / _SUBPIXEL


def _clock(frame: int) -> int:
    cycles, rest = divmod(frame + _CYCLE_OFFSET, _CYCLE)
    return cycles * _BUSY + min(rest, _BUSY)


def _outline(shape: str, half: tuple[float, float], u: Picture, v: Picture) -> Picture:
    """Signed distance in pixels (negative inside, exact near straight edges) to a shape."""
    a, b = np.float32(half[0]), np.float32(half[1])
    if shape == "disc":
        return np.sqrt(u * u + v * v) - a
    across, down = np.abs(u), np.abs(v)
    if shape == "box":
        return np.maximum(across - a, down - b)
    if shape == "cross":
        third = a * np.float32(0.36)
        upright = np.maximum(across - third, down - a)
        level = np.maximum(across - a, down - third)
        return np.minimum(upright, level)
    # An equilateral triangle around its centre: three edges at a distance of half its radius.
    slope = np.float32(0.8660254) * across + np.float32(0.5) * v
    return np.maximum(slope, -v) - a * np.float32(0.5)


def _mix(thing: _Thing, u: Picture, v: Picture) -> Picture:
    """Share of the second colour, [h, w] in 0..1, with soft edges so that it does not flicker."""
    period = np.float32(thing.texture_px)

    def bands(distance: Picture) -> Picture:
        part = distance / period
        part = part - np.floor(part)
        sharp = np.float32(0.5) * period
        return np.clip((np.abs(part - np.float32(0.5)) - np.float32(0.25)) * sharp + 0.5, 0, 1)

    if thing.texture == "stripes":
        return bands(u)
    if thing.texture == "rings":
        return bands(np.sqrt(u * u + v * v))
    if thing.texture == "checks":
        first, second = bands(u), bands(v)
        return first + second - 2 * first * second
    return np.zeros_like(u)


@lru_cache(maxsize=4)
def _noise_table(sigma: float) -> NDArray[np.int16]:
    """Noise value for each 16-bit random word: the normal distribution's rounded quantiles."""
    normal = NormalDist(0, sigma)
    return np.array([round(normal.inv_cdf((k + 0.5) / 65536)) for k in range(65536)], np.int16)


class Scene:
    """A synthetic video of any length: pictures, class maps and camera motion by frame number.

    size:    (h, w) in pixels, at least 32 each
    seed:    another seed is another place with other things
    objects: things per picture area, about; with `pan` the larger world holds more of them
    noise:   standard deviation of the sensor noise in 1/255 of full scale; 0 turns it off
    pan:     the camera moves over a world larger than its picture
    Raises FrameError (a ValueError) for a size, count or noise that cannot be.
    """

    def __init__(
        self,
        size: tuple[int, int] = (320, 480),
        seed: int = 0,
        objects: int = 6,
        noise: float = 2.0,
        pan: bool = False,
    ) -> None:
        h, w = size
        if min(h, w) < MIN_SIZE_PX or objects < 0 or noise < 0 or seed < 0:
            raise FrameError(
                f"a scene needs a size of at least {MIN_SIZE_PX}x{MIN_SIZE_PX} and seed, objects "
                f"and noise of 0 or more; got size {h}x{w}, seed {seed}, objects {objects}, "
                f"noise {noise}"
            )
        self.size, self.seed, self.noise, self.pan = (h, w), seed, float(noise), pan
        self._room = (h // 4, w // 3) if pan else (0, 0)
        unit = min(h, w) / 320
        dice = Dice(seed, 1)
        # One row and column more, for the bilinear sample at the far end of the camera's path.
        world_h, world_w = h + self._room[0] + int(pan), w + self._room[1] + int(pan)
        self._ground = paint_ground(dice, world_h, world_w, unit)
        self._camera_phase = (dice.uniform(0, 2 * math.pi), dice.uniform(0, 2 * math.pi))
        count = round(objects * world_h * world_w / (h * w))
        first = dice.below(3)
        self._things = [self._make_thing(dice, (first + k) % 3 + 1, unit) for k in range(count)]
        self._shadow_px = (max(1, round(3 * unit)), max(1, round(2 * unit)))
        self._rim_px = max(0.6, 1.6 * unit)

    def _make_thing(self, dice: Dice, kind: int, unit: float) -> _Thing:
        h, w = self.size
        area = dice.uniform(0.006, 0.014) * h * w
        stretch = math.sqrt(dice.uniform(1.0, 1.9))
        shape = ("disc", "box", "cross" if dice.below(2) else "triangle")[kind - 1]
        radius = math.sqrt(
            area / {"disc": math.pi, "box": 4, "cross": 2.36, "triangle": 1.3}[shape]
        )
        half = (radius * stretch, radius / stretch) if shape == "box" else (radius, radius)
        bright, dull, third = dice.uniform(170, 240), dice.uniform(20, 70), dice.uniform(30, 200)
        strong = np.array([bright, dull, third], np.float32)
        order = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0)][dice.below(6)]
        speed, heading = dice.uniform(0.7, 2.6) * unit, dice.uniform(0, 2 * math.pi)
        period = 60 + dice.below(90)
        world_h, world_w, _ = self._ground.shape
        return _Thing(
            kind=kind,
            shape=shape,
            half_px=half,
            colours=(strong[list(order)], dice.colour((190, 190, 180), (235, 235, 235))),
            texture=("plain", "stripes", "rings", "checks")[dice.below(4)],
            texture_px=max(2.0, radius * dice.uniform(0.7, 1.1)),
            start_px=(dice.uniform(0, world_w), dice.uniform(0, world_h)),
            speed_px=(speed * math.cos(heading), speed * math.sin(heading)),
            weave=(dice.uniform(0, 14) * unit, dice.uniform(60, 140), dice.uniform(0, 6.28)),
            turn=(dice.uniform(0, 2 * math.pi), dice.uniform(-0.03, 0.03)),
            pause=(period, round(period * dice.uniform(0.3, 0.8)), dice.below(period)),
        )

    def _camera(self, frame: int) -> tuple[float, float]:
        """Top left corner of the picture in the world, (y, x) in pixels, a multiple of 1/16."""
        h, w = self.size
        corner = []
        for room, length, frames, phase in zip(
            self._room, (h, w), (300, 200), self._camera_phase, strict=True
        ):
            # The fastest motion is length / frames pixels per frame.
            wave = math.pi * room * frames / length or 1.0
            corner.append(_snap(room / 2 * (1 + math.sin(2 * math.pi * frame / wave + phase))))
        return corner[0], corner[1]

    def homography(self, frame: int) -> NDArray[np.float64]:
        """Camera motion into `frame`, [3, 3]: (x, y, 1) of a pixel centre to the frame before.

        The identity for frame 0 and without `pan`.
        """
        matrix = np.eye(3)
        if frame > 0:
            (y, x), (before_y, before_x) = self._camera(frame), self._camera(frame - 1)
            matrix[0, 2], matrix[1, 2] = x - before_x, y - before_y
        return matrix

    def _pose(self, thing: _Thing, frame: int) -> tuple[float, float, float]:
        """Centre (y, x) in the world in pixels, and angle."""
        period, moving, offset = thing.pause
        rounds, rest = divmod(_clock(frame) + offset, period)
        ticks = rounds * moving + min(rest, moving)
        amplitude, wave, phase = thing.weave
        sideways = amplitude * math.sin(2 * math.pi * ticks / wave + phase)
        speed = math.hypot(*thing.speed_px)
        world_h, world_w, _ = self._ground.shape
        across, along = thing.speed_px[0] / speed, thing.speed_px[1] / speed
        x = thing.start_px[0] + thing.speed_px[0] * ticks - along * sideways
        y = thing.start_px[1] + thing.speed_px[1] * ticks + across * sideways
        return (
            _snap(_reflect(y, 0, world_h)),
            _snap(_reflect(x, 0, world_w)),
            thing.turn[0] + thing.turn[1] * ticks,
        )

    def _sprites(self, frame: int) -> Iterator[_Sprite]:
        """Yield what is in the picture, from the back to the front."""
        h, w = self.size
        camera_y, camera_x = self._camera(frame)
        for thing in self._things:
            y, x, angle = self._pose(thing, frame)
            y, x, reach = y - camera_y, x - camera_x, thing.reach_px
            top, bottom = max(0, math.floor(y) - reach), min(h, math.ceil(y) + reach + 1)
            left, right = max(0, math.floor(x) - reach), min(w, math.ceil(x) + reach + 1)
            if top >= bottom or left >= right:
                continue
            dy = (np.arange(top, bottom) - y).astype(np.float32)[:, None]
            dx = (np.arange(left, right) - x).astype(np.float32)[None, :]
            cos = np.float32(round(math.cos(angle) * 4096) / 4096)
            sin = np.float32(round(math.sin(angle) * 4096) / 4096)
            u, v = dx * cos + dy * sin, dy * cos - dx * sin
            depth = _outline(thing.shape, thing.half_px, u, v)
            cover = np.clip(np.float32(0.5) - depth, 0, 1)
            light = 1 - np.float32(0.14) * (dx + dy) / np.float32(thing.half_px[0])
            yield _Sprite(thing, top, left, cover, depth, (u, v), light)

    def backdrop(self, frame: int) -> NDArray[np.uint8]:
        """Return the place without the things and the noise, [H, W, 3] uint8 RGB."""
        h, w = self.size
        y, x = self._camera(frame)
        top, left = int(y), int(x)
        down, across = int((y - top) * _SUBPIXEL), int((x - left) * _SUBPIXEL)
        if not (down or across):
            return self._ground[top : top + h, left : left + w].copy()
        # 255 * 16 * 16 fits 16 bits.
        part = self._ground[top : top + h + 1, left : left + w + 1].astype(np.uint16)
        rows = part[:-1] * np.uint16(_SUBPIXEL - down) + part[1:] * np.uint16(down)
        both = rows[:, :-1] * np.uint16(_SUBPIXEL - across) + rows[:, 1:] * np.uint16(across)
        return np.right_shift(both, 8).astype(np.uint8)

    def _draw(self, picture: NDArray[np.uint8], sprite: _Sprite) -> None:
        h, w = self.size
        sprite_h, sprite_w = sprite.cover.shape
        top, left = sprite.top + self._shadow_px[0], sprite.left + self._shadow_px[1]
        ground = picture[top : min(h, top + sprite_h), left : min(w, left + sprite_w)]
        shadow = sprite.cover[: ground.shape[0], : ground.shape[1], None]
        ground[:] = ground * (1 - np.float32(0.4) * shadow) + np.float32(0.5)

        patch = picture[sprite.top : sprite.top + sprite_h, sprite.left : sprite.left + sprite_w]
        base, second = sprite.thing.colours
        rim = np.clip(sprite.depth + np.float32(self._rim_px + 0.5), 0, 1)
        light = sprite.light * (1 - np.float32(0.45) * rim)
        mix = _mix(sprite.thing, *sprite.along)[..., None]
        surface = np.clip((base + (second - base) * mix) * light[..., None], 0, 255)
        patch[:] = patch + (surface - patch) * sprite.cover[..., None] + np.float32(0.5)

    def frame(self, index: int) -> NDArray[np.uint8]:
        """Return picture number `index`, counted from 0: [H, W, 3] uint8 RGB."""
        picture = self.backdrop(index)
        for sprite in self._sprites(index):
            self._draw(picture, sprite)
        if self.noise == 0:
            return picture
        words = Dice(self.seed, 2, index).words(-(-picture.size // 4))
        grain = _noise_table(self.noise)[words.view(np.uint16)[: picture.size]]
        return np.clip(picture + grain.reshape(picture.shape), 0, 255).astype(np.uint8)

    def mask(self, index: int) -> NDArray[np.uint8]:
        """Return the true class of each pixel of picture `index`, [H, W] uint8 into `CLASSES`."""
        classes = np.zeros(self.size, np.uint8)
        for sprite in self._sprites(index):
            sprite_h, sprite_w = sprite.cover.shape
            area = np.s_[sprite.top : sprite.top + sprite_h, sprite.left : sprite.left + sprite_w]
            classes[area][sprite.cover >= 0.5] = sprite.thing.kind
        return classes
