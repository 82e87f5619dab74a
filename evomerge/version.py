"""The version, in a module of its own: what needs it does not import the package that offers `evomerge.search`."""

VERSION = "0.1.0"
