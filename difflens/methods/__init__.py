"""Turning a bias down: who is moved, how strongly, and the edit itself."""
