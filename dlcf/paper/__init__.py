"""The paper under test: its network by every reading of its text, and with each part changed.

Begin with :mod:`dlcf.paper.replication`, which asks what can have given the paper's six numbers;
`components` asks what each decision of the design is worth, `fits` keeps what both fit; `related`
asks whether what the paper's related work claims holds here.
"""
