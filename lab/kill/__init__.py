"""Trainings killed at chosen and at random moments."""
