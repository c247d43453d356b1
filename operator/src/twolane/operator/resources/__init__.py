"""The custom resources as typed Python objects; a test compares them with the schema in the chart."""
