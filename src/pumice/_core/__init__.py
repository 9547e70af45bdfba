"""The C++ core, bound by Cython. Nothing here has a policy."""
