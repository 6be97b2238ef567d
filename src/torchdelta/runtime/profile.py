"""The profile of a network's gates that users export and load; light, see `cli.precheck`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchdelta.arguments import finite, shown
from torchdelta.errors import ProfileError
from torchdelta.targets import write_whole

if TYPE_CHECKING:
    from torchdelta.plan import Plan

FORMAT = "torchdelta-profile/1"
NORMS = ("rms", "max")


@dataclass(frozen=True)
class Profile:
    """What a network's gates should be, apart from the tolerance.

    multipliers: factor on the threshold by value name; "input" is the input gate's, "*" the
                 default of all other values; 0 switches a gate to comparing values
    rms:         scale by value name; values without one are measured on each stream's first frame
    norm:        "rms" (default) or "max", over a channel group
    """

    multipliers: Mapping[str, float] = field(default_factory=dict)
    rms: Mapping[str, float] = field(default_factory=dict)
    norm: str = "rms"

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ProfileError(f"norm is {self.norm!r}, expected one of {', '.join(NORMS)}")
        for field_name, kind in (("multipliers", "multiplier"), ("rms", "rms")):
            given = getattr(self, field_name)
            if not isinstance(given, Mapping):
                raise ProfileError(
                    f"{field_name} are {shown(given)}, expected a number by value name"
                )
            try:
                numbers = {name: finite(f"{kind} of {name!r}", number, least=0)
                           for name, number in given.items()}  # fmt: skip
            except ValueError as error:
                raise ProfileError(str(error)) from None
            object.__setattr__(self, field_name, numbers)

    def check(self, plan: Plan) -> None:
        """Refuse names that are not gated values of the plan.

        Raises: ProfileError naming them.
        """
        known = {v.name for v in plan.owners if v.gated} | {"input", "*"}
        unknown = sorted((set(self.multipliers) | set(self.rms)) - known)
        if unknown:
            raise ProfileError(
                f"the profile names {len(unknown)} values that this plan does not have or does not "
                f"gate: {', '.join(unknown[:5])}{' …' if len(unknown) > 5 else ''}; it was made "
                "for another network, or they are only read by the caller"
            )

    def save(self, path: str | Path) -> None:
        """Write the profile as JSON, a file whole or not at all; raises SinkError."""
        data = {
            "format": FORMAT,
            "norm": self.norm,
            "multipliers": dict(self.multipliers),
            "rms": dict(self.rms),
        }
        write_whole(path, json.dumps(data, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read a profile from JSON.

        Raises: ProfileError where the file is missing, no JSON or no profile.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ProfileError(f"cannot read the profile {path}: {error}") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            got = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise ProfileError(f"{path} is no profile: format is {got!r}, expected {FORMAT!r}")
        unknown = sorted(set(data) - {"format", "norm", "multipliers", "rms"})
        if unknown:
            raise ProfileError(f"{path} has unknown entries: {', '.join(unknown)}")
        tables: dict[str, Any] = {}
        for key in ("multipliers", "rms"):
            tables[key] = data.get(key, {})
            if not isinstance(tables[key], dict):
                raise ProfileError(f"{path}: {key} is no object of numbers by value name")
        return cls(norm=data.get("norm", "rms"), **tables)
