"""Whether Triton loads a repository: asked of a tritonserver, model by model."""
