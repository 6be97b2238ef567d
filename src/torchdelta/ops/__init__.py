"""What each step means: footprint and recompute in plain PyTorch.

Every operation is a frozen dataclass that carries its own parameters. `OPS` is the registry:
to add an operation, write its class in one of the files here, add one line below and rows to the
cases in `tests/cases.py`; it then works on every engine through the definition given here.
"""

from torchdelta.ops.base import Footprint, Op
from torchdelta.ops.conv import Conv2d, ConvTranspose2d
from torchdelta.ops.dense import Dense
from torchdelta.ops.move import Copy, PixelShuffle, PixelUnshuffle, Remap, Reshape
from torchdelta.ops.pointwise import Affine, Binary, BinaryConst, Pointwise, Softmax
from torchdelta.ops.pool import AdaptivePool2d, AvgPool2d, GlobalReduce, MaxPool2d, TileReduce
from torchdelta.ops.resize import Bilinear

OPS: dict[str, type[Op]] = {
    op.name: op
    for op in (
        Conv2d,
        ConvTranspose2d,
        MaxPool2d,
        AvgPool2d,
        AdaptivePool2d,
        TileReduce,
        GlobalReduce,
        Pointwise,
        Affine,
        Binary,
        BinaryConst,
        Softmax,
        Bilinear,
        Remap,
        PixelShuffle,
        PixelUnshuffle,
        Reshape,
        Copy,
        Dense,
    )
}

__all__ = ["OPS", "Footprint", "Op", *sorted(op.__name__ for op in OPS.values())]
