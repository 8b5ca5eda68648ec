"""What lies where on disk, and how it is read and written whole: a run's MODEL_DIR, and the cache."""
