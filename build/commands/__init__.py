"""The commands of `python -m build`, a file a group; each calls one room."""
