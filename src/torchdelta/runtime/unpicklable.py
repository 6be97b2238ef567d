"""What cannot be pickled or copied says so in words, with what to do instead."""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn


class Unpicklable:
    """Refuses `pickle`, `copy`, `torch.save`, and what sends objects to other processes.

    instead: what to do
    """

    instead: ClassVar[str]

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} cannot be pickled, copied or saved: {self.instead}"
        )
