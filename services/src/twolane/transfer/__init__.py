"""Pages from worker to worker: who may write where, how the bytes travel, what was kept."""
