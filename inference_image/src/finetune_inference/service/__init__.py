"""The three parts of `InferenceService`: the server's lifecycle, the model registry and the generator."""
