"""Many runs of one configuration that differ in some bindings: `python -m switch_jax.sweep`."""
