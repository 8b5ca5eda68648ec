"""switch_jax: train Switch Transformers (Fedus, Zoph, Shazeer) with JAX on TPU pods, or on a laptop."""

__version__ = '0.2.0'
