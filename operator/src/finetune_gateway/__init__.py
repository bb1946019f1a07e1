"""The REST API of finetune.dev: HTTP in, custom resource out, always with the caller's rights.

Read in this order: `app` (assembly), `routes/` (the endpoints), `schemas` (requests and responses), `translate`
(request to object and object to response, pure), `cluster` (client of the API server), `errors` (one format for all errors),
`access` (one log line per request).
The custom resource is the only store: a restart loses nothing, and jobs created with kubectl are visible here.
"""
