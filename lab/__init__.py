"""The lab: the local Kubernetes, benchmarks, soak and kill campaigns, and the figures they leave. Tests may use it; it never uses tests."""
