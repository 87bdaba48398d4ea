"""A server with OpenAI's API for a model whose cache forgets: continuous batching, and documents that are read once."""
