"""deepcf-plus: a network that reads what other ratings say of a rating.

Begin with :mod:`dlcf.plus.evidence`, what is said and what must not be seen; then
:class:`~dlcf.plus.deepcf_plus.DeepCFPlus`, the network, its training and its ranking.
"""
