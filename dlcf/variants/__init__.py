"""The paper's network taken further: it explains itself, ranks, and attends faithfully.

Begin with :class:`~dlcf.variants.deepcf.ExplainedDeepCF`, which is registered as ``deepcf``;
with its defaults it is the paper's model. `shapley` shares a prediction between user and movie.
"""
