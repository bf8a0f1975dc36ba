"""Speed and memory, beside plain ways to do the same and beside other libraries.

Run by ``python -m bench [SECTION ...]`` in a checkout; not part of the installed package. Begin
with `measure`, which holds the sections; `steps` times a training step, `peers` other libraries.
"""
