"""Other ways to serve the same core: each framework's own quick start, for one load generator to ask in turns."""
