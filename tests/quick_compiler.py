"""XLA's flags for tests: programs that are compiled soon; how fast they run is not what is tried, and they run briefly.

XLA's passes are the same; LLVM optimizes none of what they make. With OPTIMIZED_TESTS=1 all is compiled as users have
it: so `.ci/run` tries what compares our numbers with those of T5X.
"""

QUICK_COMPILER = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
