"""The libraries that a run patches, one file each: imports to watch, where losses and models pass, where it logs."""
