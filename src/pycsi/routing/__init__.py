"""The controller of many nodes: forwards each RPC, as bytes, to the node that has the data."""
