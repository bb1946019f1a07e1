"""The triggers: everything that makes a reconcile run.

watches.py       an object of ours or a child that carries our label changed: its key is marked
resync.py        all cached objects with something left to do are marked every few seconds
work_queue.py    `requeue_after` of a reconcile is over, or the back-off after a failed one
controller.py    workers take due keys from the queue and reconcile them
keys.py          keys, and the way from a child to the objects it belongs to

Changes become marked keys, nothing else: nothing here stores or decides anything about an object.
"""
