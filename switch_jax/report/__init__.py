"""Pictures and tables of finished and running runs, one self-contained HTML file: `python -m switch_jax.report`.

Reads JSON only (metrics, a checkpoint's `config.json`), so it starts at once; JAX comes in with `--experts`.
"""
