"""pumice."""
