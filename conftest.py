"""The suite is `benchmarks/suite`: its options, fixtures and reports are plugins of pytest."""

pytest_plugins = [
    "benchmarks.suite.options",
    "benchmarks.suite.cells",
    "benchmarks.suite.comparing",
    "benchmarks.suite.reporting",
    "benchmarks.suite.session",
]
