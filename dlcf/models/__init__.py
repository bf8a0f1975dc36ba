"""The models of the reading core, on one contract.

Begin with `deepcf`, the paper's network; `base` is what every model must be, `network` what trained
ones share. `baselines` and `mf` are what the paper's network is compared with.
"""
