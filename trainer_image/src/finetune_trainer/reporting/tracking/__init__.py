"""Figures of every step for TensorBoard, MLflow and Weights & Biases, as a configuration selects them.

A tracker receives all steps in order, on a thread of its own that makes every call into its library: a server that is slow,
gone or refuses costs figures and nothing else. All attempts of a job are one run of the tracker. transformers has callbacks
for the same libraries, but they call from the training thread, their errors end it, and each attempt would be a run.
"""
