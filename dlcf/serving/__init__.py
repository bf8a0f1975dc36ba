"""What a fitted model can serve besides: a history that was changed, without training again.

Begin with :class:`~dlcf.serving.history.HistoryRecommender`.
"""
