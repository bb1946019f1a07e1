"""Glue to kopf: every event becomes a dirty key, nothing else. No handler returns, stores or decides anything.

Only `on.event` handlers, on purpose: kopf's state-changing handlers write annotations and finalizers of their own.
"""
