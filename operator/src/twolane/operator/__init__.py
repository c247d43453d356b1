"""The Kubernetes operator: turns a ModelDeployment into pods, tells the truth about them, and drains them.

Handlers only observe, plan and apply; every decision is a pure function over plain dictionaries.
"""
