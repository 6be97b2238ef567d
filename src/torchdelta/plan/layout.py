"""Lay the values out in buffers: concatenations and channel slices become views of one buffer."""

from __future__ import annotations

from dataclasses import dataclass

from torchdelta.ops import Copy
from torchdelta.ops.move import state_shape
from torchdelta.plan.draft import Draft, DraftGraph
from torchdelta.plan.ir import Buffer


@dataclass(frozen=True)
class Place:
    """Where a result lives: buffer index and first channel."""

    buffer: int
    offset: int


class Layout:
    """Assigns a place to every draft; adds a copy where a value stands in a second buffer."""

    def __init__(self, graph: DraftGraph) -> None:
        self.graph = graph
        self.buffers: list[Buffer] = []
        self.places: dict[Draft, Place] = {}
        cats = [d for d in graph.drafts if d.kind == "cat"]
        # the largest first: a smaller one may then lie inside it (DenseNet's)
        for cat in sorted(cats, key=lambda d: -state_shape(d.shape)[2]):
            self._place_cat(cat)
        for draft in graph.drafts:
            self._resolve(draft)

    def _new_buffer(self, draft: Draft) -> Place:
        h, w, c = state_shape(draft.shape)
        self.buffers.append(Buffer(h, w, c, draft.dtype))
        return Place(len(self.buffers) - 1, 0)

    def _resolve(self, draft: Draft) -> Place:
        """Find the place of a result, giving it a buffer of its own where it has none."""
        if draft not in self.places:
            if draft.kind == "slice":
                source = self._resolve(draft.inputs[0])
                self.places[draft] = Place(source.buffer, source.offset + draft.start)
            else:
                self.places[draft] = self._new_buffer(draft)
        return self.places[draft]

    def _place_cat(self, cat: Draft) -> None:
        if cat not in self.places:
            inside = self._contiguous(cat.inputs)
            self.places[cat] = inside or self._new_buffer(cat)
        place = self.places[cat]
        offset = place.offset
        for i, part in enumerate(cat.inputs):
            wanted = Place(place.buffer, offset)
            if part.kind in ("op", "cat") and part not in self.places:
                self.places[part] = wanted
            elif self.places.get(part) != wanted:
                cat.inputs[i] = copy = self._copy(part, cat, i)
                self.places[copy] = wanted
            offset += state_shape(part.shape)[2]

    def _contiguous(self, parts: list[Draft]) -> Place | None:
        """Give the place of a concatenation whose parts already lie side by side."""
        places = [self.places.get(p) for p in parts]
        first = places[0]
        if first is None:
            return None
        offset = first.offset
        for part, place in zip(parts, places, strict=True):
            if place != Place(first.buffer, offset):
                return None
            offset += state_shape(part.shape)[2]
        return first

    def _copy(self, part: Draft, cat: Draft, number: int) -> Draft:
        copy = Draft(
            f"{part.name}>{cat.name}:{number}", "op", part.shape, part.whole, [part], Copy(),
            dtype=part.dtype,
        )  # fmt: skip
        self.graph.drafts.insert(self.graph.drafts.index(part) + 1, copy)
        return copy
