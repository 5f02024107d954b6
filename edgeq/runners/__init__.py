"""Runtimes, one a file: `open_session(path) -> Session` whose `run(feeds, taps)` gives arrays."""
