"""`pycsi adopt`: take over what other drivers, or hostPath, have left on a node.

`layouts` and `cluster` tell what there is, and `plan` what would become of it. `carrying` does it,
and `undoing` undoes it; `manifests` are for the orchestrator. What is on the disk meanwhile:
`pool/adoptions.py`.
"""
