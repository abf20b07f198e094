"""From naive Triton to this one in single steps, each measured beside all others."""
