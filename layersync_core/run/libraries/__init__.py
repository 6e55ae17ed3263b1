"""What a run takes hold of, a file each: which imports it waits for, where losses and models pass, where it logs."""
