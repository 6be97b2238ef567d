"""Each command's options, its help, and what is checked before PyTorch is there.

What a command does is imported when it is called: help and usage errors wait for nothing.
"""
