"""The REST face of finetune.dev: HTTP in, custom resource out, always as the caller and never as ourselves.

Read in this order: `app` (what is put together), `routes/` (the calls), `schemas` (what goes over the wire), `translate`
(request to object and object to answer, pure), `cluster` (the one door to the API server), `errors` (one shape for all),
`access` (one log line for each request).
The custom resource is the only store: a restart loses nothing, and a job made with kubectl is visible here.
"""
