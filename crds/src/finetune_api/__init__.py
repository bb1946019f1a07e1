"""The types that operator, gateway, trainer and server share. Depends on pydantic and the standard library only.

Read in this order: `v1alpha1` (the two kinds), `training` and `serving` (configuration of the pods), `outcome` (reports of a
training pod), `fingerprint` and `artifacts` (the proof stored with an adapter), `conditions` and `reasons` (the words of `status`).
"""
