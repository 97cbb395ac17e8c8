"""What a model consists of: hub metadata, GGUF headers and config.json. The bytes themselves are the agent's work."""
