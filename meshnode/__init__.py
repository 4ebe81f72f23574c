"""meshnode: the session layer of the agentic internet, as a peer-to-peer mesh."""

__version__ = "0.1.0"
