"""The reference models: networks, training, evaluation, simulated learners, and checkpoints of anybody's."""
