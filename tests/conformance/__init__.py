"""Every registered codec, layout and pruner, and every kernel of every ISA, against every law.

The cases come from the registries: what registers itself is tested, and no file here changes for it.
"""
