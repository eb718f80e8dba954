"""A stable OpenAI-compatible API in front of one or more LLM engine processes."""
