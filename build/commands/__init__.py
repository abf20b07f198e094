"""The commands of `python -m build`, a file a room. What one needs is imported when it runs: --help is quick."""
