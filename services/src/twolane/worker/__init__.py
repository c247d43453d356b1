"""The worker process: one engine, its queues, its page transfers, and the streams of its routers."""
