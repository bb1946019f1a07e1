"""The types that operator, gateway, trainer and server agree on. pydantic and the standard library only.

Read in this order: `v1alpha1` (what users write and read), `training` and `serving` (what the operator hands to a pod),
`outcome` (what a trainer pod hands back), `fingerprint` and `artifacts` (the proof that travels with an adapter).
"""
