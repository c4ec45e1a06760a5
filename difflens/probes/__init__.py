"""Light probes that read an attribute off the activations at one step."""
