"""Pure decisions: `decide(now_s, view)` over frozen values, for live services and the simulator alike."""
