"""Many fits under one protocol, resumable: what the results files and their tables come from.

Begin with :mod:`dlcf.studies.compare`; `prequential` predicts ratings in the order of time,
`ablation` takes deepcf-plus apart, `tune` and `search` choose settings, `replication` searches the
paper's protocol, `train` fits a single model.
"""
