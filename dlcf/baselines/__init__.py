"""Strong models that a deep network has to beat, each from its own paper.

Begin with :mod:`dlcf.baselines.knn`; `ranking` holds those that only rank, `fm` factorisation
machines, `svdpp` matrix factorisation with implicit feedback.
"""
