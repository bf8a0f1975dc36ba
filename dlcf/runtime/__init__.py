"""What a run stands on: folders and atomic files, checkpoints, several processes.

Begin with `paths`; `checkpoints` lets a killed training go on, `distributed` shares a batch among
the processes that torchrun started, `parallel` runs many fits side by side.
"""
