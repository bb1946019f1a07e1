"""The triggers: everything that makes a reconcile run.

watches.py            an object of ours or a child that carries our label changed: its key is marked
resync.py             both kinds are listed every few seconds, so that a lost event hides nothing for long
work_queue.py         `requeue_after` of a reconcile is over, or the back-off after a failed one
controller.py         workers take due keys from the queue and reconcile them
keys.py               keys, and the way from a child to the objects it belongs to
watch_supervisor.py   kopf, which runs the watches: its settings, its thread, its restarts

Events become marked keys, nothing else: no handler returns, stores or decides anything. Only `on.event` handlers, on purpose:
kopf's state-changing handlers write annotations and finalizers of their own.
"""
