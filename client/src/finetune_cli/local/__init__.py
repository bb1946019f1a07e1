"""A FinetuneJob on this machine: the operator's own reconcilers over files, and pods as processes.

`session` puts the parts together: `manifest` reads what the user wrote, `store` is the cluster's API over files, `node` runs
pods as processes with the paths of `mapping`, `chat` asks the endpoint, `terminal` shows what happens.
"""
