"""The front of twolane: OpenAI REST and gRPC in, one multiplexed stream to every worker out."""
