"""Tools of a release: one version for all distributions, their floors, what is built and how it is tried."""
