"""What is kept on disk: artifacts and their shards, run folders, locks and hashes."""
