"""Every denoising transformer of diffusers: what covers it, as ``docs/classes.md`` says."""
