"""The still part of the demo's scene: a square seen from above, painted once per scene.

Random numbers come from the raw words of PCG64, whose stream NumPy promises never to change (its
distributions may), and from plain arithmetic: the same picture on every machine.
"""

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.float32]


class Dice:
    """Random numbers that stay the same across NumPy versions and machines."""

    def __init__(self, *seed: int) -> None:
        self._bits = np.random.PCG64(list(seed))

    def words(self, count: int) -> NDArray[np.uint64]:
        """Return `count` raw 64-bit words."""
        return np.asarray(self._bits.random_raw(count), np.uint64)

    def field(self, *shape: int) -> Picture:
        """Return values in [0, 1), float32."""
        words = self.words(int(np.prod(shape))) >> np.uint64(40)
        return (words.astype(np.float32) / np.float32(1 << 24)).reshape(shape)

    def uniform(self, low: float, high: float) -> float:
        """Return one value in [low, high)."""
        return low + (high - low) * float(self.words(1)[0] >> np.uint64(11)) / (1 << 53)

    def below(self, count: int) -> int:
        """Return one integer in [0, count)."""
        return int(self.uniform(0, count))

    def colour(self, low: tuple[int, int, int], high: tuple[int, int, int]) -> Picture:
        """Return one RGB colour, [3] float32, each part between its bounds."""
        return np.array([self.uniform(a, b) for a, b in zip(low, high, strict=True)], np.float32)


def _lattice_index(length: int, cell: int) -> tuple[NDArray[np.int64], Picture]:
    at = np.arange(length)
    part = (at % cell).astype(np.float32) / np.float32(cell)
    return at // cell, part * part * (3 - 2 * part)


def value_noise(dice: Dice, h: int, w: int, cell: int) -> Picture:
    """Smooth noise in [0, 1) with features of `cell` pixels; returns [h, w] float32."""
    lattice = dice.field(h // cell + 2, w // cell + 2)
    y, fy = _lattice_index(h, cell)
    x, fx = _lattice_index(w, cell)
    rows = lattice[y] + (lattice[y + 1] - lattice[y]) * fy[:, None]
    return rows[:, x] + (rows[:, x + 1] - rows[:, x]) * fx


def fractal_noise(dice: Dice, h: int, w: int, cell: int, octaves: int) -> Picture:
    """Sum of octaves of `value_noise`, halving cell and weight; [h, w] float32, about -1 to 1."""
    total = np.zeros((h, w), np.float32)
    for octave in range(octaves):
        noise = value_noise(dice, h, w, max(2, cell >> octave))
        total += (noise - np.float32(0.5)) * np.float32(2 * 0.5**octave)
    return total * np.float32(0.7)


def _paving(dice: Dice, h: int, w: int, unit: float) -> Picture:
    """Stone slabs in rows, each with a shade of its own, and dark joints: [h, w, 3]."""
    tile_h, tile_w = max(3, round(26 * unit)), max(4, round(40 * unit))
    joint = max(1, round(1.5 * unit))
    y = np.arange(h)[:, None]
    x = np.arange(w)[None, :] + (y // tile_h % 2) * (tile_w // 2)
    shade = dice.field(h // tile_h + 1, w // tile_w + 2)[y // tile_h, x // tile_w]
    stone = dice.colour((140, 130, 115), (178, 168, 152))
    level = 0.90 + 0.2 * shade + 0.06 * fractal_noise(dice, h, w, max(2, round(10 * unit)), 3)
    level = np.where((y % tile_h < joint) | (x % tile_w < joint), level * np.float32(0.72), level)
    return level[..., None].astype(np.float32) * stone


def _lawn(dice: Dice, h: int, w: int, unit: float) -> Picture:
    grass = dice.colour((70, 105, 50), (100, 135, 72))
    level = 1 + 0.22 * fractal_noise(dice, h, w, max(2, round(40 * unit)), 5)
    return level[..., None].astype(np.float32) * grass


def _paint_road(dice: Dice, picture: Picture, unit: float) -> None:
    """Paint a road with kerbs and a broken centre line across the picture, in place."""
    h, w, _ = picture.shape
    half, kerb, line = round(34 * unit), max(1, round(3 * unit)), max(1, round(2 * unit))
    middle = round(dice.uniform(0.3, 0.7) * h)
    asphalt = np.float32(dice.uniform(82, 104))
    level = 1 + 0.10 * fractal_noise(dice, h, w, max(2, round(14 * unit)), 3)
    top, bottom = max(0, middle - half), min(h, middle + half)
    picture[max(0, top - kerb) : bottom + kerb] = (188, 184, 176)
    picture[top:bottom] = (level[top:bottom, :, None] * asphalt) * np.array(
        [1, 1, 1.05], np.float32
    )
    dash = np.arange(w) % max(4, round(44 * unit)) < max(2, round(24 * unit))
    picture[middle - line : middle + line, dash] = (206, 204, 192)


def _paint_bushes(dice: Dice, picture: Picture, unit: float) -> None:
    """Paint ragged dark bushes with a light side, in place."""
    h, w, _ = picture.shape
    ragged = fractal_noise(dice, h, w, max(2, round(9 * unit)), 3)
    y, x = np.arange(h, dtype=np.float32)[:, None], np.arange(w, dtype=np.float32)[None, :]
    for _ in range(5 + dice.below(4)):
        radius = np.float32(dice.uniform(9, 20) * unit)
        dy, dx = y - round(dice.uniform(0, h)), x - round(dice.uniform(0, w))
        inside = np.sqrt(dy * dy + dx * dx) / radius + np.float32(0.45) * ragged < 1
        light = 1 - np.float32(0.25) * (dx + dy) / radius + np.float32(0.5) * ragged
        leaf = dice.colour((38, 66, 30), (58, 88, 48))
        picture[inside] = (light[..., None] * leaf)[inside]


def paint_ground(dice: Dice, h: int, w: int, unit: float) -> NDArray[np.uint8]:
    """Paint paving, lawns, a road and bushes.

    h, w: size in pixels; unit: scale of the details, 1 for a picture of 320 rows
    returns [h, w, 3] uint8 RGB
    """
    picture = _paving(dice, h, w, unit)
    shape = fractal_noise(dice, h, w, max(4, round(150 * unit)), 2)
    border = np.float32(dice.uniform(0.0, 0.2))
    lawn = shape > border
    picture[(shape > border - np.float32(0.04)) & ~lawn] *= np.float32(0.66)
    picture[lawn] = _lawn(dice, h, w, unit)[lawn]
    _paint_road(dice, picture, unit)
    _paint_bushes(dice, picture, unit)
    daylight = 1 + np.float32(0.12) * fractal_noise(dice, h, w, max(4, round(220 * unit)), 1)
    return np.clip(picture * daylight[..., None] + np.float32(0.5), 0, 255).astype(np.uint8)
