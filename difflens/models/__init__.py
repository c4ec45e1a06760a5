"""The model under study: sampling with reads and edits at a site of the denoiser."""
