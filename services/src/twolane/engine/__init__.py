"""The inference engine: model, pages, batch, sampler. Worker processes import what they need from its
modules.

`engine.Engine` computes, `pages.PagePool` keeps the books, `sequence` has the values that pass between an
engine and its worker, `config.EngineConfig` says what to load. This file imports nothing, so pages stay free
of torch.
"""
