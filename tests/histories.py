"""How many random histories the properties of streams see, and how exact they must be."""

from hypothesis import HealthCheck, Phase, settings

from support import LONG

# relative L2 of a stream against the dense network, float32 (design: P1)
P1_FP32 = 1e-5
# `make test-long` draws more histories, and lets a failure shrink
EXAMPLES_PER_OP = 25 if LONG else 2

quick = settings(
    max_examples=EXAMPLES_PER_OP,
    deadline=None,
    database=None,
    phases=tuple(Phase) if LONG else (Phase.generate,),
    suppress_health_check=list(HealthCheck),
)
