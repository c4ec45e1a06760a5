"""What one study is: its model, attribute, judges and goals, built once from a checked configuration."""
