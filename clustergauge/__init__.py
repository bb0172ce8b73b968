"""The library of ClusterGauge: what a measurement is.  Knows no probe and draws nothing."""

__version__ = "0.1.0"
