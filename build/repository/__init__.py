"""The Triton model repository: its spec and files derived, assembled aside, and moved into place."""
