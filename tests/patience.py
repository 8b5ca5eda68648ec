"""How long tests wait for other processes and threads."""

HUNG = 600  # seconds: what has not ended by then hangs; a machine with all its cores busy is slow, and is let be
