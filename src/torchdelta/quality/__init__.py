"""How good results are, measured against the dense network's."""
