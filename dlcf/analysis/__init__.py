"""Numbers about fitted models: intervals and tests, and what lists and errors are like.

Begin with :func:`dlcf.analysis.statistics.compare_models`, which compares two models on the same
users; :func:`dlcf.analysis.beyond.measure` measures one beyond accuracy.
"""
