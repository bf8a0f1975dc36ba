"""The systems beside which the paper places itself, and two yardsticks of today.

Begin with :mod:`dlcf.related.networks`, what they share; then each in a file of its own, whose
class says its equations and what is done otherwise than in its paper.
"""
