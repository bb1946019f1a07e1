"""Celery task of an attempt, and the worker that runs it in a pod."""
