"""Watching a run: what it shows and writes, when it warns, stops or is stopped."""
