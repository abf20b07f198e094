"""What the Makefile itself runs: its variables, and the lock of every package."""
