"""The load generator: replays a trace against any OpenAI address and reports what clients saw."""
