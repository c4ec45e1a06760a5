"""The only LightningModules: SAE training, attribution sweeps, steered generation; and the loggers they write to."""
