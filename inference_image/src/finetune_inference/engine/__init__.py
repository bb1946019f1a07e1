"""The interface that every engine implements, and the scheduler."""
