"""The configuration: one folder per group, named like the package's folders; ships inside the package."""
