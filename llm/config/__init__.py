"""From what was typed to a config that can be trusted: entry point, validation, instantiation."""
