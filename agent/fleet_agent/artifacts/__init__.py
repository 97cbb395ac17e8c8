"""Model files: our own resumable download, and the standard Hugging Face cache they live in."""
