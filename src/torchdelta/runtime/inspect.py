"""What a session holds inside, for tests and tools.

They ask here and never read a session's private attributes: how a session keeps its streams may
change, the answers may not. What is returned is the session's own, no copy; nothing is locked.
"""

from __future__ import annotations

from concurrent.futures import Future

from torch import Tensor

from torchdelta.engines import Engine
from torchdelta.runtime.session import Session
from torchdelta.state import State


def frame_state(session: Session) -> State:
    """Give the state of the streams that run on frames.

    Raises: LookupError where there is none.
    """
    if False not in session._canvases:
        raise LookupError("no stream of this session runs on frames")
    return session._canvases[False].state


def window_state(session: Session) -> State | None:
    """Give the state of the streams whose cameras are followed; None where nobody is."""
    return session._canvases[True].state if True in session._canvases else None


def states(session: Session) -> list[State]:
    """List the states that a session holds: of frames, then of windows."""
    return [canvas.state for _, canvas in sorted(session._canvases.items())]


def slot_of(session: Session, stream: str) -> int:
    """Give the slot of a stream: its row in the state."""
    return session._streams[stream].slot


def buffers_of(session: Session, stream: str) -> list[Tensor]:
    """View a stream's buffers: [H, W, C] per `plan.buffers`, in the buffers' order."""
    slot = slot_of(session, stream)
    return [buffer[slot] for buffer in frame_state(session).buffers]


def uncounted_turns(session: Session) -> int:
    """Count the turns that have run and are in no statistics yet."""
    return len(session._uncounted)


def window_engine(session: Session) -> Future[Engine] | None:
    """Give what is being made for windows, or was; None where nobody asked for windows yet."""
    return session._world.making


def ask_for_windows(session: Session) -> bool:
    """Have the network compiled for windows, as a camera that moves does; says whether it is."""
    return session._world.ready()
