"""XLA's flags for tests: programs that are compiled soon; how fast they run is not what is tried, and they run briefly.

What XLA makes of the operations is the same; LLVM optimizes none of it. Less than two thirds of the time of tests that
compile much.
"""

QUICK_COMPILER = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
